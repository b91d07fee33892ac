"""Renders `scale.json` into docs/capacity.md, without measuring.

python -m tests.scale.report
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.machine import machine
from tests.bench.report import number, table
from tests.bench.toolchain import ROOT
from tests.scale.model import Parameters, Prediction, moves, parameters, predict

RUNS = ROOT / "scale.json"
DOCUMENT = ROOT / "docs/capacity.md"
BEGIN = "<!-- generated from scale.json by `python -m tests.scale.report`; edits here are lost -->"
END = "<!-- up to here -->"
MILLION = 1_000_000
NODES = (20, 40, 60)
"""For a million."""
CHURN = 0.01
"""The share of the ICEs that goes and comes back each minute."""
_MIB, _GB = 2**20, 1e9
_DAY = 86_400
Run = Mapping[str, Any]


def facts() -> dict[str, str]:
    """The machine, without its name."""
    return machine(Path(tempfile.gettempdir()))


def when_and_where() -> str:
    """The date and the machine, in a line."""
    where = facts()
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {where['CPU']}, {where['cores']} cores, {where['memory']}"
    )


def load(path: Path = RUNS) -> list[Run]:
    """The runs, the smallest first."""
    return json.loads(path.read_text("utf-8")) if path.exists() else []


def add(run: Run, path: Path = RUNS) -> None:
    """Put a run in place of an earlier one of as many ICEs at as many nodes."""

    def key(one: Run) -> tuple[int, int]:
        return one["ices"], one["nodes"]

    others = [one for one in load(path) if key(one) != key(run)]
    runs = sorted([*others, run], key=key)
    path.write_text(json.dumps(runs, indent=1, ensure_ascii=False) + "\n", "utf-8")


def measured_parameters(runs: list[Run]) -> tuple[Parameters, Run] | None:
    """From the smallest run with one node and that with a node without ICEs; None where one is missing."""
    together = next((run for run in runs if run["bystander"]), None)
    if together is None:
        return None
    alone = [run for run in runs if run["nodes"] == 1 and run["ices"] == together["ices"]]
    if not alone:
        return None
    return parameters(alone[0]["phases"], together["phases"], together["ices"]), together


_Row = tuple[str, Callable[[Run], float], Callable[[Prediction], float], str]


def _per_s(phase: str, name: str) -> Callable[[Run], float]:
    def of(run: Run) -> float:
        found = run["phases"][phase]
        value = found[name]
        total = sum(value) / len(value) if isinstance(value, list) else value
        return float(total) / float(found["seconds"])

    return of


_ROWS: tuple[_Row, ...] = (
    (
        "memory of a node, MiB",
        lambda run: max(run["phases"]["quiet"]["node_rss"]) / _MIB,
        lambda one: one.node_rss / _MIB,
        "",
    ),
    (
        "the same after the storm",
        lambda run: max(run["phases"]["storm"]["node_rss"]) / _MIB,
        lambda one: one.peak_rss / _MIB,
        "",
    ),
    (
        "CPU of a node, nothing happens, % of a core",
        lambda run: 100 * _per_s("quiet", "node_cpu")(run),
        lambda one: 100 * one.quiet_node_cpu,
        "",
    ),
    (
        "CPU of a node, some come and go, %",
        lambda run: 100 * _per_s("churn", "node_cpu")(run),
        lambda one: 100 * one.churn_node_cpu,
        "",
    ),
    (
        "CPU of PostgreSQL, some come and go, %",
        lambda run: 100 * _per_s("churn", "postgres_cpu")(run),
        lambda one: 100 * one.churn_postgres_cpu,
        "",
    ),
    (
        "its transactions/s",
        _per_s("churn", "commits"),
        lambda one: one.commits_per_s,
        "",
    ),
    (
        "its write-ahead log, KB/s",
        lambda run: _per_s("churn", "wal")(run) / 1000,
        lambda one: one.wal_per_s / 1000,
        "",
    ),
    (
        "admissions/s, all come at once",
        lambda run: run["phases"]["ramp"]["per_s"],
        lambda one: _cores() / (one.storm_cpu + one.storm_generator),
        "/s",
    ),
)


def _cores() -> int:
    return os.cpu_count() or 1


def beside(runs: list[Run]) -> list[str]:
    """Prediction and measurement of each run from which no parameter was taken."""
    found = measured_parameters(runs)
    if found is None:
        return ["Not measured yet."]
    given, calibrated = found
    shown = [run for run in runs if run["ices"] > calibrated["ices"]]
    if not shown:
        return ["Only the parameters are measured yet: `make scale` measures more."]
    header = ["predicted · measured", *(f"{run['ices']:,} at {run['nodes']}" for run in shown)]
    rows = []
    for title, measured, predicted, unit in _ROWS:
        cells = []
        for run in shown:
            churn = run["phases"]["churn"]
            rate = moves(churn) / churn["seconds"]
            one = predict(given, run["ices"], run["nodes"], rate, churn["seconds"])
            cells.append(f"{number(predicted(one), unit)} · {number(measured(run), unit)}")
        rows.append([title, *cells])
    return table(header, rows, left=1)


def million(runs: list[Run]) -> list[str]:
    """What a million ICEs need, by the number of nodes."""
    found = measured_parameters(runs)
    if found is None:
        return ["Not measured yet."]
    given, _ = found
    ones = [predict(given, MILLION, nodes, MILLION * CHURN / 60) for nodes in NODES]

    def row(title: str, value: Callable[[Prediction], str]) -> list[str]:
        return [title, *map(value, ones)]

    rows = [
        ["ICEs of a node", *(number(MILLION / nodes) for nodes in NODES)],
        row("memory of a node, GiB", lambda one: number(one.node_rss / 2**30)),
        row("the same after a storm", lambda one: number(one.peak_rss / 2**30)),
        row("CPU of a node, % of a core", lambda one: number(100 * one.churn_node_cpu)),
        row("log of all nodes a day, GB", lambda one: number(one.log_per_s * _DAY / _GB)),
        row("PostgreSQL: cores", lambda one: number(one.churn_postgres_cpu)),
        row("its transactions/s", lambda one: number(one.commits_per_s)),
        row("its write-ahead log a day, GB", lambda one: number(one.wal_per_s * _DAY / _GB)),
        row("all come at once: admissions/s", lambda one: number(one.storm_per_s)),
        row("until all are back, s", lambda one: number(one.storm_s)),
        row("cores of PostgreSQL meanwhile", lambda one: number(one.storm_postgres)),
        row("its write-ahead log meanwhile, MB/s", lambda one: number(one.storm_wal / 1e6)),
    ]
    return table(["a million ICEs", *(f"{nodes} nodes" for nodes in NODES)], rows, left=1)


def _parameter_table(runs: list[Run]) -> list[str]:
    found = measured_parameters(runs)
    if found is None:
        return ["Not measured yet."]
    given, run = found
    one, many = given.coming_and_going, given.admission
    micro = 1e6
    rows = [
        ["memory of a node without ICEs, MiB", number(given.base_rss / _MIB)],
        ["memory of a session, KiB", number(given.session_rss / 1024)],
        ["the same after a storm, KiB", number(given.peak_rss / 1024)],
        ["CPU of a node without ICEs, % of a core", number(100 * given.base_cpu)],
        ["CPU of an idle ICE, µs each second", number(micro * given.session_cpu)],
        [
            "PostgreSQL's transactions for a node without ICEs, each second",
            number(given.base_commits),
        ],
    ]
    for title, cost in (("admission in a crowd", many), ("one that goes and comes back", one)):
        rows += [
            [f"{title}: CPU of its node, µs", number(micro * cost.node)],
            [f"{title}: CPU of PostgreSQL, µs", number(micro * cost.postgres)],
            [f"{title}: transactions, of which write", f"{cost.commits:.2f}, {cost.writes:.2f}"],
            [f"{title}: write-ahead log without whole pages, bytes", number(cost.wal)],
        ]
    rows += [
        ["admission in a crowd: CPU of each other node, µs", number(micro * given.follow)],
        [
            "a round of reading what others wrote: CPU of the node, µs",
            number(micro * given.round.node),
        ],
        ["such a round: CPU of PostgreSQL, µs", number(micro * given.round.postgres)],
        ["such a round: transactions", number(given.round.commits)],
        ["pages of PostgreSQL for each ICE", f"{sum(given.ice_pages):.2f}"],
        ["tables and indexes that they are of", str(sum(count > 0 for count in given.ice_pages))],
        ["pages of each table or index that one return changes", number(given.pages_touched)],
        ["log of a node for each admission, bytes", number(given.logged)],
    ]
    title = f"with {run['ices']:,} ICEs"
    return table([title, "measured"], rows, left=1)


def _cell(run: Run, phase: str, *names: str) -> str:
    found: Any = run["phases"].get(phase, {})
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return "" if found is None else number(float(found))


def _both(run: Run, phase: str, name: str) -> str:
    return f"{_cell(run, phase, name, 'p50')} · {_cell(run, phase, name, 'p99')}"


def runs_table(runs: list[Run]) -> list[str]:
    """What each run has seen."""
    if not runs:
        return ["Not measured yet."]

    def refused(run: Run) -> str:
        found: dict[str, int] = {}
        for phase in run["phases"].values():
            for code, count in phase.get("refused", {}).items():
                found[code] = found.get(code, 0) + count
        return ", ".join(f"{code} {count:,}" for code, count in sorted(found.items())) or "none"

    rows: list[tuple[str, Callable[[Run], str]]] = [
        ("date", lambda run: str(run["date"])),
        ("load average of the machine before it", lambda run: number(run["facts"]["load"]) if "load" in run["facts"] else "not noted"),
        ("idle for, s", lambda run: number(run["facts"]["idle_s"])),
        ("first admissions/s", lambda run: _cell(run, "ramp", "per_s")),
        ("a page of 50 ICEs, p50 · p99, ms", lambda run: _both(run, "idle", "page_ms")),
        ("deregister → answer, p50 · p99, ms", lambda run: _both(run, "idle", "drop_answered_ms")),
        ("deregister → 4101 at the ICE, p50 · p99, ms", lambda run: _both(run, "idle", "drop_closed_ms")),
        ("deregistered", lambda run: _cell(run, "idle", "drop_answered_ms", "n")),
        ("a node stops and starts, p50 · p99, s", lambda run: _both(run, "restart", "node_took")),
        ("all nodes restarted: all back after, s", lambda run: _cell(run, "restart", "all_back")),
        ("away meanwhile, p50 · p99, s", lambda run: _both(run, "restart", "away")),
        ("storm: all back after, s", lambda run: _cell(run, "storm", "all_back")),
        ("storm: admissions/s", lambda run: _cell(run, "storm", "per_s")),
        ("memory of a node after the storm, MiB", lambda run: number(max(run["phases"]["storm"]["node_rss"]) / _MIB)),
        ("refusals", refused),
        ("did not come back", lambda run: number(sum(phase.get("missing", 0) for phase in run["phases"].values()))),
        ("faults", lambda run: str(len(run["faults"]))),
    ]  # fmt: skip
    header = ["", *(_title(run) for run in runs)]
    return table(header, [[title, *(of(run) for run in runs)] for title, of in rows], left=1)


def _title(run: Run) -> str:
    of = " (one of them without ICEs)" if run["bystander"] else ""
    return f"{run['ices']:,} at {run['nodes']}{of}"


def figures(runs: list[Run]) -> str:
    """The generated part of docs/capacity.md."""
    where = [
        f"- {_title(run)}: {run['date']}, {run['machine']['CPU']}, {run['machine']['cores']} cores,"
        f" {run['machine']['memory']}."
        for run in runs
    ]
    faults = [f"- {_title(run)}: {fault}." for run in runs for fault in run["faults"][:5]]
    lines = [
        "## A million ICEs",
        "",
        *million(runs),
        "",
        "## Prediction and measurement",
        "",
        *beside(runs),
        "",
        "## The parameters",
        "",
        *_parameter_table(runs),
        "",
        "## The runs",
        "",
        *runs_table(runs),
        "",
        *([*where, ""] if where else []),
        *(["What went wrong:", "", *faults, ""] if faults else []),
    ]
    return "\n".join(lines)


def rendered(document: str, runs: list[Run]) -> str:
    """`document` with the part between the two marks generated again. Raises ValueError without them."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("docs/capacity.md has lost its marks")
    return f"{before}{BEGIN}\n\n{figures(runs)}\n{END}{after}"


def write() -> None:
    """Render the document."""
    DOCUMENT.write_text(rendered(DOCUMENT.read_text("utf-8"), load()), "utf-8")


if __name__ == "__main__":
    write()
