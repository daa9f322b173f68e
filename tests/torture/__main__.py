"""The command line of the campaigns."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fuzz = commands.add_parser("fuzz", help="random combinations of options against the truth")
    fuzz.add_argument("--cases", type=int, default=1_000_000)
    fuzz.add_argument("--seed", type=int, default=0)
    fuzz.add_argument("--workers", type=int, default=2)
    fuzz.add_argument("--backend", action="append", help="only this one; may be given again")
    fuzz.add_argument("--only", type=int, help="the case of this number alone")
    kill = commands.add_parser("kill", help="kill -9 at random instants of training and reporting, and resume")
    kill.add_argument("--times", type=int, default=100)
    kill.add_argument("--seed", type=int, default=0)
    flips = commands.add_parser("flips", help="one flipped bit anywhere in what a run keeps on disk")
    flips.add_argument("--some", type=int, default=10_000, help="flips of a large file")
    flips.add_argument("--seed", type=int, default=0)
    disk = commands.add_parser("disk", help="a full disk at any point of a run")
    disk.add_argument("--times", type=int, default=20)
    disk.add_argument("--seed", type=int, default=0)
    memory = commands.add_parser("memory", help="growth over calls and epochs, allocations that fail")
    memory.add_argument("--calls", type=int, default=100_000)
    memory.add_argument("--epochs", type=int, default=50)
    commands.add_parser("all", help="all of them, as they are")
    a = parser.parse_args()
    if a.command == "all":
        # Each in a process of its own: some fork, and some limit what they are.
        names = ("fuzz", "kill", "flips", "disk", "memory")
        codes = [subprocess.run([sys.executable, "-m", "tests.torture", name]).returncode for name in names]
        print(
            "torture:",
            ", ".join(f"{name} {'failed' if code else 'passed'}" for name, code in zip(names, codes, strict=True)),
        )
        return any(codes)
    campaign = importlib.import_module(f".{a.command}", __package__)
    if a.command == "fuzz" and a.only is not None:
        _, _, failures = campaign.campaign(a.seed, a.only, 1, a.backend)
        print("\n\n".join(failures) or "right")
        return bool(failures)
    options = {k: v for k, v in vars(a).items() if k not in ("command", "only")}
    return bool(campaign.main(**options))


if __name__ == "__main__":
    sys.exit(main())
