"""`stn` and `python -m stn_recipes`: the command line, or how to install what it needs."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        from .cli import main as run
    except ModuleNotFoundError as error:
        print(f"stn: error: {error.name} is missing; pip install 'spatial-transformers[train]'", file=sys.stderr)
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
