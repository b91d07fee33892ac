"""The performance targets of the gateway, as a table; `bench.json` has the same names of systems and figures."""

from __future__ import annotations

from dataclasses import dataclass

GATEWAY = "ICE gateway, all checks"
SESSION_LAYER = "its session layer alone, no checks"
BARE_AIOHTTP = "bare aiohttp + uvloop"
PYTHON_SOCKETIO = "python-socketio on aiohttp + uvloop"
NODE_SOCKETIO = "Node socket.io"
STEPS = "the steps of an admission, each alone"
SYSTEMS = (GATEWAY, SESSION_LAYER, BARE_AIOHTTP, PYTHON_SOCKETIO, NODE_SOCKETIO)


@dataclass(frozen=True)
class Figure:
    """One measured number of one system."""

    system: str
    name: str


@dataclass(frozen=True)
class Sum:
    """Figures of the same round, added up."""

    parts: tuple[Figure, ...]


@dataclass(frozen=True)
class Ratio:
    """Two figures of the same round, the one divided by the other."""

    over: Figure
    under: Figure | Sum


@dataclass(frozen=True)
class Goal:
    """A row: what is measured, the value that it must reach, and the target.

    `text` may contain `{ices}`, the number of ICEs, `{crowd}`, that of the most at once, and `{table}`, that of rows. `worst` compares the
    worst round instead of the median.
    """

    text: str
    measured: Figure | Ratio
    required: float
    target: float
    unit: str = ""
    more_is_better: bool = False
    worst: bool = False

    def verdict(self, value: float) -> str:
        """Which of the two `value` reaches, in a word."""
        if self._reaches(value, self.target):
            return "target"
        return "required" if self._reaches(value, self.required) else "no"

    def _reaches(self, value: float, wanted: float) -> bool:
        return value >= wanted if self.more_is_better else value <= wanted


def _ours(name: str) -> Figure:
    return Figure(GATEWAY, name)


def _than(system: str, name: str) -> Ratio:
    return Ratio(_ours(name), Figure(system, name))


_FLOOR = Sum(
    (
        Figure(STEPS, "signature_us"),
        Figure(STEPS, "key_us"),
        Figure(SESSION_LAYER, "admission_cpu_us"),
    )
)
"""What no admission can do without: verify ES256, make the key for that, and open the session."""


def _ratio(text: str, measured: Ratio, required: float, target: float) -> Goal:
    return Goal(text, measured, required, target, more_is_better=True)


GOALS = (
    _ratio(
        "admissions/s ÷ bare aiohttp + uvloop, which checks nothing",
        _than(BARE_AIOHTTP, "admissions_per_s"),
        *(1.0, 1.2),
    ),
    _ratio(
        "admissions/s ÷ python-socketio on aiohttp, which checks nothing",
        _than(PYTHON_SOCKETIO, "admissions_per_s"),
        *(3, 4),
    ),
    _ratio(
        "admissions/s ÷ Node socket.io, which checks nothing",
        _than(NODE_SOCKETIO, "admissions_per_s"),
        *(1.5, 2),
    ),
    _ratio(
        "admissions/s with all checks ÷ the same session layer without any",
        _than(SESSION_LAYER, "admissions_per_s"),
        *(0.45, 0.55),
    ),
    Goal(
        "server CPU of an admission ÷ its floor: ES256 verify, key, session layer, each alone",
        Ratio(_ours("admission_cpu_us"), _FLOOR),
        *(1.6, 1.4),
    ),
    _ratio(
        "admissions/s, the gateway free to use two cores ÷ pinned to one; the generator shares both",
        Ratio(_ours("two_cores_per_s"), _ours("one_core_per_s")),
        *(1.15, 1.3),
    ),
    _ratio(
        "first registrations/s, durable ÷ plain admissions/s",
        Ratio(_ours("registrations_per_s"), _ours("admissions_per_s")),
        *(0.8, 0.9),
    ),
    _ratio(
        "enrolments/s, durable ÷ first registrations/s",
        Ratio(_ours("enrolments_per_s"), _ours("registrations_per_s")),
        *(0.8, 1.0),
    ),
    Goal("memory per idle ICE, plain", _ours("kib_per_connection"), 3.3, 3, "KiB"),
    Goal("memory per idle ICE, TLS", _ours("tls_kib_per_connection"), 27, 25, "KiB"),
    Goal(
        "resident memory with {crowd} ICEs, all of them just registered",
        _ours("full_house_mib"),
        *(124, 110, "MiB"),
    ),
    Goal(
        "deregister by API → the ICE sees 4101, durable, {ices} others open, p50",
        _ours("drop_p50_ms"),
        *(2, 1.5, "ms"),
    ),
    Goal("the same, p99", _ours("drop_p99_ms"), 5, 4, "ms"),
    Goal("the same, missed of 300, worst round", _ours("drops_missed"), 0, 0, worst=True),
    Goal("the same at another node, on PostgreSQL, p50", _ours("across_p50_ms"), 3, 3, "ms"),
    Goal("the same at another node, on PostgreSQL, p99", _ours("across_p99_ms"), 10, 10, "ms"),
    Goal(
        "{ices} ICEs deregistered by one bulk call → last one closed",
        _ours("mass_drop_s"),
        3,
        1,
        "s",
    ),
    Goal("all {ices} back after every connection broke at once", _ours("storm_s"), 4.5, 3, "s"),
    Goal(
        "all {ices} back after every connection broke, seconds ÷ bare aiohttp's",
        Ratio(_ours("storm_s"), Figure(BARE_AIOHTTP, "storm_s")),
        *(0.6, 0.5),
    ),
    Goal("all {ices} back after kill -9 and restart", _ours("restart_s"), 6, 4, "s"),
    _ratio(
        "128-byte JSON-RPC echo, 256 active ÷ bare aiohttp echo",
        _than(BARE_AIOHTTP, "echo_per_s"),
        *(0.8, 1.2),
    ),
    Goal(
        "an operation, durable, request → result seen by the caller, p50",
        _ours("operation_p50_ms"),
        *(4, 3, "ms"),
    ),
    Goal(
        "CPU of {ices} idle ICEs with heartbeats on", _ours("idle_cpu_percent"), 2, 1, "% of a core"
    ),
    Goal(
        "`GET /ices` page, {table} ICEs in the table, {ices} connected, 500 admissions/s going on, p99",
        _ours("listing_p99_ms"),
        *(50, 20, "ms"),
    ),
)
