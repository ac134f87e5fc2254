"""A small Hub on 127.0.0.1 for the tests: revisions and files of repositories, and its failures."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

_FILE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_REVISION = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")


@dataclass(frozen=True)
class Request:
    """What a client asked: ``range`` is its Range header, "" without one."""

    method: str
    path: str
    range: str


@dataclass
class Repository:
    """Commits (hash -> file name -> content), branches (name -> hash), and who may read them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None


class Hub:
    """Context manager that serves repositories; ``requests`` records everything it was asked.

    ``cuts`` lists, for the next downloads of weight files, after how many bytes the connection
    breaks; downloads beyond the list are whole.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.cuts: list[int] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def downloads(self) -> list[str]:
        """Names of the files whose content was asked for, in order."""
        matches = (_FILE.fullmatch(r.path) for r in self.requests if r.method == "GET")
        return [match["name"] for match in matches if match]

    def commit(self, repository: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Put files on a branch of a repository as a new commit; returns its hash."""
        repo = self.repositories.setdefault(repository, Repository())
        digests = sorted(
            (name, hashlib.sha1(content).hexdigest()) for name, content in files.items()
        )
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
                self._send_listing(match["repository"], commit, repository.commits[commit])
            else:
                self._send_file(commit, repository.commits[commit].get(match["name"]))

    do_HEAD = do_GET

    def _send_listing(self, repository: str, commit: str, files: Mapping[str, bytes]) -> None:
        siblings = [{"rfilename": name} for name in files]
        body = json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode()
        self._send(200, {"Content-Type": "application/json"}, body)

    def _send_file(self, commit: str, content: bytes | None) -> None:
        headers = {"X-Repo-Commit": commit}
        if content is None:
            self._refuse(404, "EntryNotFound", headers)
            return
        headers |= {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        cut = None
        if self.command == "GET" and self.path.endswith(".safetensors") and self.hub.cuts:
            cut = self.hub.cuts.pop(0)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked:
            start = int(asked[1])
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
