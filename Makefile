# Works on a machine with Python >= 3.11 and make alone: everything else goes into .venv, at pinned versions.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow check format wheel bench clean

demo: $(VENV)/.installed
	$(BIN)/fewstep demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/basedpyright --warnings
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff format src tests benchmarks examples
	$(BIN)/ruff check --fix src tests benchmarks examples

# Hours on 2 cores, most of them for the slowest peers. What is measured already is measured again; see docs/benchmarks.md.
bench: $(VENV)/.installed-dev
	$(PIP) -e '.[dev,bench]'
	$(BIN)/python -m benchmarks.speed --json benchmarks/speed.json
	$(BIN)/python -m benchmarks.speed --json benchmarks/speed.json --scaling
	$(BIN)/python -m benchmarks.speed --render benchmarks/speed.json --into docs/benchmarks.md

# Builds the wheel and imports it outside the checkout, in an environment of its own.
wheel: $(VENV)/.installed-dev
	rm -rf dist $(VENV)/wheel
	$(BIN)/python -m build --wheel --quiet
	$(PYTHON) -m venv $(VENV)/wheel
	$(VENV)/wheel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd / && $(CURDIR)/$(VENV)/wheel/bin/fewstep recipes
	cd / && $(CURDIR)/$(VENV)/wheel/bin/python -c "import fewstep; print(fewstep.maml(fewstep.Sgd(0.01)))"
	rm -rf $(VENV)/wheel

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fewstep needs Python >= 3.11: set PYTHON, for instance make PYTHON=python3.12 demo"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) dist build demo
