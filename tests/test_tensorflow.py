"""`stn.tensorflow`: the contract in a process of its own, and what it says where it has no ops."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stn.tensorflow
from stn.ops import cpu
from stn.reading import check_reading

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs TensorFlow")
@pytest.mark.skipif(cpu._native is None or sys.platform != "linux", reason="needs the native backend, on Linux")
def test_the_contract():
    program = [sys.executable, "-m", "tests.tensorflow_contract"]
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}  # TensorFlow loads Keras
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.endswith("held\n"), done.stdout + done.stderr[-3000:]


def test_without_the_native_backend(monkeypatch):
    monkeypatch.setattr(cpu, "_native", None)
    monkeypatch.setattr(cpu, "_reason", "was left out of the build")
    for cached in (stn.tensorflow.unavailable, stn.tensorflow._ops):
        cached.cache_clear()
    assert stn.tensorflow.unavailable() == "the native backend was left out of the build"
    assert stn.tensorflow.refuses("affine", check_reading("bilinear", "zeros"))
    stn.tensorflow.unavailable.cache_clear()


def test_nothing_is_imported_before_it_is_asked_for():
    program = "import sys, stn.tensorflow; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "False\n"
