# Two commands on a fresh machine: `make demo` and `make test`. Both make the environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all lint figures clean

# Train the default recipe and its control on real digits, and write the report.
demo: $(INSTALLED)
	$(BIN)/stn train digits --control

# Lint, type-check and run the tests, with a sample of the slow ones.
test: lint
	$(BIN)/python -m pytest

# Every slow test as well.
test-all: lint
	$(BIN)/python -m pytest --slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Draw the pictures of docs/which-transform.md and docs/antialiasing.md again.
figures: $(INSTALLED)
	$(BIN)/python docs/figures.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stn needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
