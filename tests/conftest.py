from __future__ import annotations

import datetime
import os
import random
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# Of Keras in this process: TensorFlow and Triton do not go into one.
os.environ.setdefault("KERAS_BACKEND", "torch")

# One thread: the images are tiny, and a test must not depend on how many cores there are.
torch.set_num_threads(1)

settings.register_profile(
    "stn", deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("stn")


SLOW_SAMPLE = 4  # without --slow one slow test in four runs, and others tomorrow


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run every slow test, not a sample of them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked_for = config.getoption("--slow") or "slow" in config.option.markexpr or any("::" in a for a in config.args)
    if asked_for:
        return
    today = datetime.date.today().toordinal()
    left_out = [
        item
        for item in items
        if item.get_closest_marker("slow") and (zlib.crc32(item.nodeid.encode()) + today) % SLOW_SAMPLE
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers whichever tests run, in whatever order."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - for code under test that uses the global generator
    torch.manual_seed(0)
