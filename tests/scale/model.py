"""What so many ICEs need: a model whose parameters are measured with few, and what it predicts for many. Pure.

Every cost is linear, but for two: pages that PostgreSQL writes whole after a checkpoint (each once), and the rounds in which
a node reads what the others wrote (a pause lies between two). A million ICEs are a prediction: nothing here has measured them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PAGE = 8192
PAUSE = 0.1
"""Seconds between two rounds (`gateway.node.membership`)."""
CHECKPOINT = 300.0
"""Seconds between two checkpoints of PostgreSQL, by default."""
Phases = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Cost:
    """What one event costs: seconds of CPU, transactions, bytes of the log without whole pages."""

    node: float
    postgres: float
    writes: float
    commits: float
    wal: float
    generator: float = 0.0


@dataclass(frozen=True)
class Round:
    """What it costs that a node reads what others wrote, once: seconds of CPU of both, transactions."""

    node: float
    postgres: float
    commits: float


@dataclass(frozen=True)
class Parameters:
    """What was measured. CPU in seconds, memory in bytes; `base` is that of a node without ICEs, each second."""

    base_cpu: float
    base_postgres: float
    base_commits: float
    base_wal: float
    base_rss: float
    session_rss: float
    peak_rss: float
    """Of a session after all have come back at once: the memory of handshakes is not given back."""
    session_cpu: float
    """Of an idle ICE, each second."""
    session_postgres: float
    admission: Cost
    """When many come together: reads and writes are grouped."""
    coming_and_going: Cost
    """When they come and go one by one."""
    follow: float
    """Seconds of each other node for an admission of a crowd."""
    round: Round
    ice_pages: tuple[float, ...]
    """Pages of each table and index of presence for each ICE."""
    pages_touched: float
    """Of each of them, by one that goes and comes back. It is less than 1: some indexes change seldom."""
    logged: float
    """Bytes of the gateway's log for each admission."""


def parameters(alone: Phases, together: Phases, ices: int) -> Parameters:
    """From a run with one node, and a run of as many ICEs with several, the last of which holds none of them."""
    empty, quiet = alone["empty"], alone["quiet"]

    def per_second(phase: Mapping[str, Any], name: str) -> float:
        value = phase[name]
        return float(sum(value) if isinstance(value, list) else value) / float(phase["seconds"])

    base_cpu, base_postgres, base_commits, base_wal = (
        per_second(empty, name) for name in ("node_cpu", "postgres_cpu", "commits", "wal")
    )
    session_cpu = max(0.0, per_second(quiet, "node_cpu") - base_cpu) / ices
    session_postgres = max(0.0, per_second(quiet, "postgres_cpu") - base_postgres) / ices

    def bystander(name: str) -> float:
        """What the node without ICEs has spent because of the others'."""
        phase, none = together[name], together["empty"]
        spent = phase["node_cpu"][-1] - none["node_cpu"][-1] / none["seconds"] * phase["seconds"]
        return max(0.0, float(spent))

    def cost(name: str, events: float) -> Cost:
        phase = alone[name]
        seconds = float(phase["seconds"])
        # While they come, half of them are there on average.
        there = ices * (1 - 0.5 * float(phase.get("took", 0.0)) / seconds)
        images = PAGE * float(phase["page_images"])

        def own(name: str, base: float) -> float:
            value = phase[name]
            total = float(sum(value) if isinstance(value, list) else value)
            return max(0.0, total - base * seconds) / events

        generators = float(phase["generators_cpu_per_s"]) * seconds / events
        return Cost(
            node=own("node_cpu", base_cpu + session_cpu * there),
            postgres=own("postgres_cpu", base_postgres + session_postgres * there),
            writes=own("writes", per_second(empty, "writes")),
            commits=own("commits", base_commits),
            wal=max(0.0, phase["wal"] - images - base_wal * seconds) / events,
            generator=generators,
        )

    admission = cost("ramp", alone["ramp"]["admitted"])
    churn = cost("churn", moves(alone["churn"]))
    pages = [float(count) for count in alone["churn"]["relation_pages"].values()]
    few = together["churn"]
    seconds, nodes = float(few["seconds"]), len(few["node_cpu"])
    made = seconds * rounds(moves(few) / seconds * churn.writes)

    def followed(name: str, by_one: float) -> float:
        """What all nodes cost PostgreSQL for a round of one of them, beyond what one node alone would."""
        none = together["empty"]
        base = float(none[name]) / float(none["seconds"]) * seconds
        return max(0.0, few[name] - base - moves(few) * by_one) / (made * (nodes - 1))

    return Parameters(
        base_cpu=base_cpu,
        base_postgres=base_postgres,
        base_commits=base_commits,
        base_wal=base_wal,
        base_rss=float(empty["node_rss"][0]),
        session_rss=(alone["ramp"]["node_rss"][0] - empty["node_rss"][0]) / ices,
        peak_rss=(alone["storm"]["node_rss"][0] - empty["node_rss"][0]) / ices,
        session_cpu=session_cpu,
        session_postgres=session_postgres,
        admission=admission,
        follow=bystander("ramp") / moves(together["ramp"]),
        round=Round(
            bystander("churn") / made,
            followed("postgres_cpu", churn.postgres),
            followed("commits", churn.commits),
        ),
        # An image is mostly smaller than a page: what is left of the log would be too little.
        coming_and_going=Cost(**{**vars(churn), "wal": max(churn.wal, admission.wal)}),
        ice_pages=tuple(count / ices for count in pages),
        pages_touched=touched(pages, alone["churn"]["page_images"], moves(alone["churn"])),
        logged=alone["ramp"]["logged"] / alone["ramp"]["admitted"],
    )


def rounds(writes: float) -> float:
    """Rounds of a node in a second with so many writes of others."""
    return 1 / (PAUSE + 1 / writes) if writes else 0.0


def moves(phase: Mapping[str, Any]) -> float:
    """How many ICEs came, or went and came back: some are still away at its end. One at least."""
    came, went = float(phase["admitted"]), float(phase["went"])
    return max(1.0, (came + went) / 2 if went else came)


def images(pages: Iterable[float], touches: float) -> float:
    """How many pages are touched at least once, where each table and index of so many pages is at so many random ones."""
    return sum(of * -math.expm1(-touches / of) for of in pages if of)


def touched(pages: Collection[float], seen: float, events: float) -> float:
    """How many pages of each table and index an event touches, where `events` touched `seen` different ones."""
    low, high = 0.0, 1e3
    for _ in range(60):
        middle = (low + high) / 2
        enough = images(pages, middle * events) >= seen
        low, high = (low, middle) if enough else (middle, high)
    return high


@dataclass(frozen=True)
class Prediction:
    """For so many ICEs at so many nodes. Shares of a core, bytes, transactions and bytes each second."""

    node_rss: float
    peak_rss: float
    """After a storm."""
    quiet_node_cpu: float
    churn_node_cpu: float
    churn_postgres_cpu: float
    commits_per_s: float
    wal_per_s: float
    log_per_s: float
    storm_cpu: float
    """Seconds of CPU of one admission in a storm: the node that admits, all others, PostgreSQL."""
    storm_generator: float
    storm_per_s: float
    """Admissions a second of all nodes, each with a core for itself and PostgreSQL with as many as it needs."""
    storm_s: float
    storm_postgres: float
    """Cores of PostgreSQL at that rate."""
    storm_wal: float
    """Bytes a second of its log at that rate, without whole pages."""


def predict(
    given: Parameters, ices: int, nodes: int, rate: float, since: float = CHECKPOINT
) -> Prediction:
    """With `rate` ICEs a second that go and come back; the log on average of `since` seconds from a checkpoint on."""
    each = ices / nodes
    idle = given.base_cpu + each * given.session_cpu
    come, many = given.coming_and_going, given.admission
    pages = [ices * count for count in given.ice_pages]
    whole = images(pages, rate * since * given.pages_touched) / since
    # A node admits one of n, and follows the others.
    shared = many.node + (nodes - 1) * given.follow
    per_s = nodes / shared
    follows = rounds(rate * come.writes * (nodes - 1) / nodes)
    return Prediction(
        node_rss=given.base_rss + each * given.session_rss,
        peak_rss=given.base_rss + each * given.peak_rss,
        quiet_node_cpu=idle,
        churn_node_cpu=idle + rate / nodes * come.node + follows * given.round.node,
        churn_postgres_cpu=nodes * given.base_postgres
        + ices * given.session_postgres
        + rate * come.postgres
        + nodes * follows * given.round.postgres,
        commits_per_s=nodes * given.base_commits
        + rate * come.commits
        + nodes * follows * given.round.commits,
        wal_per_s=nodes * given.base_wal + rate * come.wal + whole * PAGE,
        log_per_s=rate * given.logged,
        storm_cpu=shared + many.postgres,
        storm_generator=many.generator,
        storm_per_s=per_s,
        storm_s=ices / per_s,
        storm_postgres=per_s * many.postgres,
        storm_wal=per_s * many.wal,
    )
