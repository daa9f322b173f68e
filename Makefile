# Two commands on a fresh machine: `make demo` and `make test`. Both make the environment first, with what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TRAIN := $(VENV)/.installed-train
DEV := $(VENV)/.installed-dev

.PHONY: demo test test-all torture lint figures docs sanitize clean

# Train the default recipe and its control on real digits, and write the report.
demo: $(or $(wildcard $(DEV)),$(TRAIN))
	$(BIN)/stn train digits --control

# Lint, type-check and run the tests, with a sample of the slow ones.
test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

# Every slow test as well.
test-all: lint
	$(BIN)/python -m pytest --slow --numprocesses auto --dist loadfile

# Hard conditions: fuzz, kill -9, byte flips, full disks, memory. About an hour on two quiet cores.
torture: $(DEV)
	$(BIN)/python -m tests.torture all

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Draw the pictures of docs/which-transform.md and docs/antialiasing.md again.
figures: $(DEV)
	$(BIN)/python docs/figures.py

# The documentation site, in build/site: strictly, so that a link that leads nowhere stops it. Reads the sources alone; torch is not
# needed, so only what the extra `docs` names is installed.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m mkdocs build --strict --quiet

$(VENV)/.installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $$($(BIN)/python -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $@

# The native backend with the address and undefined-behaviour sanitizers, under its own tests. Python itself leaks on
# purpose, and the sanitizer must be loaded before it, with the library whose exceptions it watches.
NATIVE := build/sanitize
sanitize: $(DEV)
	$(BIN)/python -m pip install --quiet nanobind cmake ninja
	$(BIN)/cmake -S src/stn/ops/csrc -B $(NATIVE) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
		-DPython_EXECUTABLE=$(abspath $(BIN)/python) -DSTN_SANITIZE=ON
	$(BIN)/cmake --build $(NATIVE)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(BIN)/python tests/sanitized.py $(NATIVE)/_native.cpython*.so tests/test_cpu.py tests/test_native_edge.py tests/test_polynomials.py tests/test_cpab.py tests/test_area.py tests/test_deformable.py tests/test_fields.py tests/test_linearized.py \
		-q -k "not forked and not compiled and not opcheck and not registered_op"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stn needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# The package with an extra, train or dev. pip hides what the compiler says; it goes to a file, which is shown meanwhile.
LOG := build/native.log
$(VENV)/.installed-%: pyproject.toml constraints.txt CMakeLists.txt $(shell find src/stn/ops/csrc -type f) | $(BIN)/python
	@echo "Installing what '$*' needs into $(VENV) and compiling the native backend for this machine"
	@mkdir -p build; : > $(LOG); tail -F $(LOG) 2> /dev/null & trap "kill $$!" EXIT; \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
