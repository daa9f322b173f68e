# Two commands on a fresh machine: `make demo` and `make test`. Both make the environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all lint figures sanitize clean

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

# The native kernels with the address and undefined-behaviour sanitizers, under their own tests. Python itself leaks on
# purpose, and the sanitizer must be loaded before it.
NATIVE := build/sanitize
sanitize: $(INSTALLED)
	$(BIN)/python -m pip install --quiet nanobind cmake ninja
	$(BIN)/cmake -S src/stn/ops/csrc -B $(NATIVE) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
		-DPython_EXECUTABLE=$(abspath $(BIN)/python) -DSTN_SANITIZE=ON
	$(BIN)/cmake --build $(NATIVE)
	LD_PRELOAD=$$($(CXX) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(BIN)/python tests/sanitized.py $(NATIVE)/_native*.so tests/test_cpu.py -q -k "not forked and not compiled and not opcheck"

$(INSTALLED): pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/stn/ops/csrc/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stn needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
