"""Measures several gateways on one PostgreSQL beside one: admissions, storms, drops across nodes.

    python -m tests.bench.nodes [--ices 10000] [--rounds 3]

On a machine of two cores: servers, PostgreSQL and load generator share both, so that what is seen is whether
nodes get in each other's way, and not what as many machines would do. The variants take turns, round by
round; medians are printed. PostgreSQL is durable here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench import phases, toolchain
from tests.bench.fleet import Fleet, copied, database_in
from tests.bench.generator import Generator
from tests.bench.phases import Bench, Figures
from tests.bench.systems import Running, free_port, started
from tests.support.postgres import Postgres, postgres

DURABLE = ("fsync=on", "full_page_writes=on", "autovacuum=on")
_SETTLE = 12.0
"""Seconds after which every connection of PostgreSQL has told what it did."""
_LONGEST = 45 * 60.0
_NAME = "bench"


class Nodes:
    """Gateways on one PostgreSQL, as many as are wanted, on the ICEs of a bench."""

    def __init__(self, bench: Bench, server: Postgres) -> None:
        self._bench = bench
        self._server = server
        self._keys = bench.folder / "registered/ice.keys.json"

    @property
    def url(self) -> str:
        """The database on PostgreSQL."""
        return self._server.url(_NAME)

    def move(self) -> None:
        """Move the registered ICEs to PostgreSQL."""
        self._server.sql(f"CREATE DATABASE {_NAME}")
        folder = copied(self._bench.folder / "registered", self._bench.folder / "moved")
        subprocess.run(
            [
                *(sys.executable, "-m", "gateway", "migrate-store"),
                *("--from", database_in(folder), "--to", self.url),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "ICE_GATEWAY_TOKENS__KEY_FILE": str(self._keys)},
        )

    @contextlib.contextmanager
    def serving(self, count: int = 1, public: int | None = None) -> Iterator[list[Running]]:
        """So many nodes, each on a port of its own; ICEs take `public`, or the first port, for that of all."""
        ports = [free_port() for _ in range(count)]
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(self._node(port, public or ports[0])) for port in ports]
            yield running
            for node in running:
                node.process.terminate()
            for node in running:
                node.process.wait(30)

    def _node(self, port: int, public: int) -> contextlib.AbstractContextManager[Running]:
        command = (
            *(sys.executable, "-m", "gateway", "serve", "--port", str(port)),
            *("--database", self.url, "--public-url", f"http://127.0.0.1:{public}"),
        )
        return started(
            command,
            port,
            " serves ",
            self._bench.log,
            core="0,1",
            ICE_GATEWAY_TOKENS__KEY_FILE=str(self._keys),
            ICE_GATEWAY_METRICS__LISTEN="",
            ICE_GATEWAY_NODE__NAME=f"port-{port}",
        )

    def transactions(self) -> int:
        """How many PostgreSQL has committed for the gateways."""
        rows = self._server.sql("SELECT datname, xact_commit FROM pg_stat_database")
        return int(dict(row.split("|") for row in rows.split())[_NAME])


def spread(running: list[Running]) -> tuple[str, str]:
    """Have the load generator connect to the nodes in turn."""
    return ("--ports", ",".join(str(node.port) for node in running))


def admissions(bench: Bench, running: list[Running]) -> Figures:
    return {"admissions/s": bench.ices(running[0], *spread(running))["ramp"]["per_s"]}


def storm(bench: Bench, nodes: Nodes) -> Figures:
    """All connections of two nodes break at once; what PostgreSQL commits from then on until all is settled.

    What the nodes commit without any work is measured before it, and taken off.
    """
    seen: list[tuple[float, int]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            seen.append((time.monotonic(), nodes.transactions()))

    with nodes.serving(2) as running:
        watching = threading.Thread(target=watch)
        watching.start()
        try:
            quiet = ("--settle", round(2000 * _SETTLE))
            more = (*spread(running), *quiet, "--break", "--hold", _SETTLE)
            result = bench.ices(running[0], *more, rounds=4)
        finally:
            ended = time.monotonic()
            over.set()
            watching.join()
    back = float(result["storm"]["all_back_s"])
    began = ended - _SETTLE - back - 1.0

    def at(moment: float) -> tuple[float, int]:
        return max(sample for sample in seen if sample[0] <= moment)

    (first, then), (before, committed), (last, final) = at(began - _SETTLE), at(began), at(ended)
    rate = (committed - then) / (before - first)
    return {
        "all back, s": back,
        "transactions": final - committed - rate * (last - before),
        "transactions per second without work": rate,
    }


def drops_across(bench: Bench, nodes: Nodes) -> Figures:
    """300 deregistrations at one node, of ICEs that another holds."""
    request = bench.call("POST", "/ices/bench-{i}/deregister").replace("\r\n", "\\r\\n")
    with nodes.serving() as [holding], nodes.serving(public=holding.port) as [acting]:
        admin = ("--admin", f"127.0.0.1:{acting.port}", "--admin-req", request)
        kick = bench.ices(holding, "--kicks", phases.DROPS, *admin)["kick"]
    missed = phases.DROPS - kick["closeframe_n"]
    return {"p50 ms": kick["close_p50_ms"], "p99 ms": kick["close_p99_ms"], "missed": missed}


def drops(bench: Bench) -> Figures:
    """The same as one phase of the whole benchmark, on a PostgreSQL of its own."""
    with postgres(*DURABLE) as server:
        nodes = Nodes(bench, server)
        nodes.move()
        found = drops_across(bench, nodes)
    if found["missed"]:
        raise RuntimeError(f"not everybody was told: {found}")
    return {"across_p50_ms": found["p50 ms"], "across_p99_ms": found["p99 ms"]}


def measure(ices: int, rounds: int) -> dict[str, list[float]]:
    """Every figure by name, a value a round."""
    found: dict[str, list[float]] = {}

    def note(name: str, figures: Figures) -> None:
        for what, value in figures.items():
            found.setdefault(f"{name}: {what}", []).append(value)
            sys.stderr.write(f"{name}: {what} {value:.2f}\n")

    toolchain.HOME.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=toolchain.HOME, prefix="nodes-") as name,
        postgres(*DURABLE) as server,
    ):
        folder = Path(name)
        fleet = Fleet(folder / "fleet", ices)
        asyncio.run(fleet.provision())
        bench = Bench(folder, Generator(folder, time.monotonic() + _LONGEST), fleet)
        phases.register_all(bench)
        nodes = Nodes(bench, server)
        nodes.move()
        for _ in range(rounds):
            for count in (1, 2, 3):
                with nodes.serving(count) as running:
                    note(f"{count} of them", admissions(bench, running))
        for _ in range(rounds):
            note("a storm at 2 nodes", storm(bench, nodes))
        # Last, since whom it takes out does not come back.
        note("dropped across nodes", drops_across(bench, nodes))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ices", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name, values in measure(options.ices, options.rounds).items():
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        sys.stdout.write(f"{name} {statistics.median(values):.1f}{spread}\n")


if __name__ == "__main__":
    main()
