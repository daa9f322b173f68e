"""Runs pytest with a build of the native kernels put in the place of the installed one: `make sanitize` calls it.

python tests/sanitized.py path/to/_native.so [pytest arguments]
"""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch  # noqa: F401 - whose OpenMP the library shares

name = "stn.ops._native"
spec = importlib.util.spec_from_file_location(name, sys.argv[1])
assert spec is not None
assert spec.loader is not None
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)

if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[2:]))
