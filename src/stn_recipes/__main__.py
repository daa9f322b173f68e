"""`stn` and `python -m stn_recipes`: the command line, or how to install what it needs."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from types import FrameType, ModuleType


def main() -> int:
    """Run the command line; returns the exit code."""
    signal.signal(signal.SIGINT, _interrupt)
    for stream in (sys.stdout, sys.stderr):  # a file or a job log shows every line when it is written
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    warnings.showwarning = _warn
    # TensorBoard's own way of doing without TensorFlow, which it would load where there is one: seconds for nothing.
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
    try:
        from .cli import main as run

        return run()
    except ModuleNotFoundError as error:
        print(f"stn: error: {error.name} is missing; pip install 'spatial-transformers[train]'", file=sys.stderr)
        return 1


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    print(f"stn: warning: {message}", file=sys.stderr)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C: leave at once while modules load, where an exception would surface as any other; else KeyboardInterrupt."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"\nstn: interrupted\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
