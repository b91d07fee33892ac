"""Power cuts: see `tests.powerloss.torture`.

python -m tests.powerloss [--states 4000] [--seed N] [--story NAME]... [--mutations] [--keep DIR]
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
from pathlib import Path

from gateway.runtime.logs import configure
from tests.powerloss.stories import STORIES
from tests.powerloss.torture import run


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Cut the power at every point, and start again.")
    parser.add_argument(
        "--states", type=int, default=4000, help="at most so many, shared by the stories"
    )
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--story", action="append", choices=list(STORIES), help="this one alone")
    parser.add_argument("--mutations", action="store_true", help="leave flushes out, too")
    parser.add_argument(
        "--processes", type=int, default=2, help="states of a story for real processes"
    )
    parser.add_argument("--keep", help="a folder for the states with faults")
    given = parser.parse_args()
    if shutil.which("strace") is None:
        print("missing: strace (Debian and Ubuntu: apt install strace)")
        return 1
    configure("text", "critical")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    return 1 if run(given) else 0


if __name__ == "__main__":
    sys.exit(main())
