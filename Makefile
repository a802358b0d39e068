# Every target makes what it needs and repeats nothing. PYTHON may name another interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: install quickstart test test-all test-faults benchmarks check clean

install: $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("scaling needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[test]'
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/scaling sweep sweeps/quickstart.yaml
	$(BIN)/scaling fit --metric fid --plan quickstart

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m 'not slow'

test-faults: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/faults -m slow

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

benchmarks: $(VENV)/.installed
	@status=0; for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file || status=1; done; exit $$status

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
