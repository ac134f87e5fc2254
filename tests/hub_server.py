"""A small Hub on 127.0.0.1 for the tests: revisions and files of repositories, and its failures.

It also takes uploads, by the protocol for hubs without Xet storage.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

_FILE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_REVISION = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
_WRITING = re.compile(
    r"/api/models/(?P<repository>[^/]+/[^/]+)/(?P<what>preupload|commit|branch)/(?P<branch>.+)"
)


@dataclass(frozen=True)
class Request:
    """A request of a client: ``range`` is its Range header, "" without one."""

    method: str
    path: str
    range: str


@dataclass
class Repository:
    """Commits (hash -> file name -> content), branches (name -> hash), and who may read them.

    ``messages`` are those of the commits, in order, that clients made.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    private: bool = False
    messages: list[str] = field(default_factory=list)


class Hub:
    """Context manager that serves repositories; ``requests`` records all requests.

    ``cuts`` lists, for the next downloads of weight files, after how many bytes the connection
    breaks; downloads beyond the list are whole. ``write_token``: who may make commits.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.cuts: list[int] = []
        self.write_token: str | None = None
        self.large_files: dict[str, bytes] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def downloads(self) -> list[str]:
        """Names of the files whose content was requested, in order."""
        matches = (_FILE.fullmatch(r.path) for r in self.requests if r.method == "GET")
        return [match["name"] for match in matches if match]

    def commit(self, repository: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Put files on a branch of a repository as a new commit; returns its hash."""
        repo = self.repositories.setdefault(repository, Repository())
        digests = sorted((name, hashlib.sha1(each).hexdigest()) for name, each in files.items())
        commit = hashlib.sha1(json.dumps(digests).encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.branches[branch] = commit
        return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self.hub.requests.append(
            Request(self.command, urlsplit(self.path).path, self.headers.get("Range", ""))
        )
        path = unquote(urlsplit(self.path).path)
        match = _FILE.fullmatch(path) or _REVISION.fullmatch(path)
        repository = self.hub.repositories.get(match["repository"]) if match else None
        if match is None or repository is None:
            self._refuse(404, "RepoNotFound")
        elif repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            self._refuse(403, "GatedRepo")
        else:
            revision = match["revision"] or "main"
            commit = repository.branches.get(revision, revision)
            if commit not in repository.commits:
                self._refuse(404, "RevisionNotFound")
            elif match.re is _REVISION:
                siblings = [{"rfilename": name} for name in repository.commits[commit]]
                listing = {"id": match["repository"], "sha": commit, "siblings": siblings}
                self._send_json(listing)
            else:
                self._send_file(commit, repository.commits[commit].get(match["name"]))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(Request(self.command, path, ""))
        body = self._body()
        given = self.headers.get("Authorization")
        if path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif self.hub.write_token and given != f"Bearer {self.hub.write_token}":
            self._refuse(403 if given else 401, "")
        elif path == "/api/repos/create":
            self._create_repository(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [self._place_for(each) for each in json.loads(body)["objects"]]
            self._send_json({"transfer": "basic", "objects": objects})
        elif match := _WRITING.fullmatch(path):
            self._write(match["repository"], match["what"], match["branch"], body)
        else:
            self._refuse(404, "EntryNotFound")

    def do_PUT(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(Request(self.command, path, ""))
        content = self._body()
        digest = hashlib.sha256(content).hexdigest()
        if path != f"/lfs/{digest}":
            self._refuse(400, "")
            return
        self.hub.large_files[digest] = content
        self._send(200, {}, b"")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _create_repository(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        exists = name in self.hub.repositories
        if not exists:
            self.hub.commit(name, {})
            private = wanted.get("private") is True or wanted.get("visibility") == "private"
            self.hub.repositories[name].private = private
        self._send_json({"url": f"{self.hub.url}/{name}", "name": name}, 409 if exists else 200)

    def _place_for(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Where to put a large file; nothing to do for one that is there."""
        place = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in self.hub.large_files:
            place["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
        return place

    def _write(self, repository: str, what: str, branch: str, body: bytes) -> None:
        repo = self.hub.repositories[repository]
        if what == "branch":
            exists = branch in repo.branches
            repo.branches.setdefault(branch, repo.branches["main"])
            self._send_json({}, 409 if exists else 200)
        elif what == "preupload":
            modes = []
            for each in json.loads(body)["files"]:
                mode = "lfs" if each["path"].endswith(".safetensors") else "regular"
                modes.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False})
            self._send_json({"files": modes})
        else:
            files = dict(repo.commits[repo.branches[branch]])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    repo.messages.append(value["summary"])
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                else:
                    files[value["path"]] = self.hub.large_files[value["oid"]]
            commit = self.hub.commit(repository, files, branch)
            url = f"{self.hub.url}/{repository}/commit/{commit}"
            self._send_json({"commitUrl": url, "commitOid": commit})

    def _send_json(self, value: object, status: int = 200) -> None:
        self._send(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send_file(self, commit: str, content: bytes | None) -> None:
        headers = {"X-Repo-Commit": commit}
        if content is None:
            self._refuse(404, "EntryNotFound", headers)
            return
        headers |= {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        cut = None
        if self.command == "GET" and self.path.endswith(".safetensors") and self.hub.cuts:
            cut = self.hub.cuts.pop(0)
        partial = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if partial:
            start = int(partial[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(206, headers, content[start:], cut)
        else:
            self._send(200, headers, content, cut)

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, {"X-Error-Code": code, **(headers or {})}, b"")

    def _send(
        self, status: int, headers: Mapping[str, str], body: bytes, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the requests out of the output of the tests."""


@contextmanager
def local_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A Hub that huggingface_hub talks to in this process, with a cache folder, without waiting."""
    from huggingface_hub import constants

    with Hub() as server:
        # huggingface_hub has read the environment when it was imported.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server
