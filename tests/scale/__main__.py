"""Many ICEs at several nodes on one PostgreSQL: what they cost, and how they come back.

    python -m tests.scale [--ices 100000] [--nodes 6] [--idle 600] [--minutes 15] [--bystander] [--no-write]

All are registered, come, are idle, 1 % of them goes and comes back each minute while an admin looks at pages and deregisters
a hundred; then every node is restarted in turn, and every connection breaks at once. The entries are prepared in the
database (`tests.scale.prepare`); every admission, ping, drop and write from then on is real. A run prints what it sees, adds
it to `scale.json`, and renders docs/capacity.md. It fails where an ICE or a deregistration was lost.

The machine's limits: 20,000 file handles or less for a process need as many nodes and generators, and a generator uses four
addresses of its own (127.0.1.1 and so on).
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
from dataclasses import asdict
from datetime import UTC, datetime

from gateway.runtime.fd_limits import OVERHEAD, raise_limit
from tests.bench.toolchain import Missing
from tests.scale import report
from tests.scale.story import Plan, play

_LEAST_QUIET = 20.0


def _check(ices: int, nodes: int) -> None:
    """Raise Missing where the machine cannot do it."""
    raise_limit()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # While one node is away, the others hold its ICEs.
    if most != resource.RLIM_INFINITY and ices / nodes + OVERHEAD > most:
        raise Missing(
            f"file handles: {ices / nodes + OVERHEAD:,.0f} are needed for a node, the hard limit is {most:,}"
            " (more --nodes, or ulimit -Hn)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ices", type=int, default=100_000)
    parser.add_argument("--nodes", type=int, default=6)
    parser.add_argument("--idle", type=float, default=600.0, help="seconds, if there is time")
    parser.add_argument("--minutes", type=float, default=15.0, help="for all of it")
    parser.add_argument(
        "--churn", type=float, default=1.0, help="percent that go and come each minute"
    )
    parser.add_argument("--bystander", action="store_true", help="the last node gets no ICE")
    parser.add_argument("--no-write", action="store_true", help="leave scale.json and the page")
    options = parser.parse_args()
    if options.bystander and options.nodes < 2:
        parser.error("--bystander needs two nodes at least")
    try:
        _check(options.ices, options.nodes - options.bystander)
    except Missing as missing:
        sys.exit(f"missing: {missing}")
    plan = Plan(
        ices=options.ices,
        nodes=options.nodes,
        quiet=max(_LEAST_QUIET, min(60.0, options.idle / 4)),
        idle=options.idle,
        churn=options.churn / 100,
        limit=60 * options.minutes,
        bystander=options.bystander,
    )
    outcome = asyncio.run(play(plan))
    run = {
        **asdict(outcome),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": report.facts(),
    }
    print("\n".join(["", *report.runs_table([run])]))
    print(*(f"FAULT: {fault}" for fault in outcome.faults), sep="\n")
    print(f"{outcome.facts['whole_s'] / 60:.1f} minutes")
    if not options.no_write:
        report.add(run)
        report.write()
        print("scale.json and docs/capacity.md are written")
    sys.exit(bool(outcome.faults))


if __name__ == "__main__":
    main()
