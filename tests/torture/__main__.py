"""The command line of the campaigns."""

from __future__ import annotations

import argparse
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
    a = parser.parse_args()
    if a.command == "fuzz":
        from . import fuzz as campaign

        if a.only is not None:
            _, _, failures = campaign.campaign(a.seed, a.only, 1, a.backend)
            print("\n\n".join(failures) or "right")
            return bool(failures)
        return bool(campaign.main(a.seed, a.cases, a.workers, a.backend))
    if a.command == "kill":
        from . import kill as killing

        return bool(killing.main(a.times, a.seed))
    return 2


if __name__ == "__main__":
    sys.exit(main())
