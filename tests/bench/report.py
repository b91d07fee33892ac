"""Renders `bench.json` into docs/performance.md and its charts, without measuring.

python -m tests.bench.report
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.goals import (
    GATEWAY,
    GOALS,
    SESSION_LAYER,
    STEPS,
    SYSTEMS,
    Figure,
    Goal,
    Ratio,
)
from tests.bench.results import Results, Spread
from tests.bench.toolchain import ROOT, Missing, peers_python

BENCH = ROOT / "bench.json"
DOCUMENT = ROOT / "docs/performance.md"
IMAGES = ROOT / "docs/images"
BEGIN = "<!-- generated from bench.json by `python -m tests.bench.report`; edits here are lost -->"
END = "<!-- up to here -->"
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Column:
    """A figure that more than one system has."""

    name: str
    title: str
    unit: str
    more_is_better: bool = False


COLUMNS = (
    Column("admissions_per_s", "admissions/s", "/s", more_is_better=True),
    Column("admission_cpu_us", "server CPU per admission", "µs"),
    Column("kib_per_connection", "memory per idle connection", "KiB"),
    Column("echo_per_s", "echo, 128 bytes, 256 active", "/s", more_is_better=True),
    Column("drop_p50_ms", "one dropped, p50", "ms"),
    Column("drop_p99_ms", "one dropped, p99", "ms"),
    Column("storm_s", "all back after every connection broke", "s"),
)
ALONE = (
    Column("registrations_per_s", "first registrations, durable", "/s", more_is_better=True),
    Column("enrolments_per_s", "enrolments, durable", "/s", more_is_better=True),
    Column("two_cores_per_s", "admissions, free to use two cores", "/s", more_is_better=True),
    Column("two_cores_cpu_us", "the gateway's own CPU of such an admission", "µs"),
    Column("one_core_per_s", "admissions, pinned to one of them", "/s", more_is_better=True),
    Column("tls_admissions_per_s", "admissions over TLS", "/s", more_is_better=True),
    Column("listing_p50_ms", "a page of the list, p50", "ms"),
    Column("listing_admissions_per_s", "admissions at the same time", "/s", more_is_better=True),
)
PARTS = (
    ("open_token_us", "open the token (JWE, AES-256-GCM) and hash it"),
    ("key_us", "make a key of the proof's `jwk`, and its thumbprint"),
    ("signature_us", "verify its ES256 signature"),
    ("proof_us", "the rest of the proof: base64url, JSON, URL, token's hash"),
    ("replay_us", "check that it was not used before, and remember it"),
    ("look_up_us", "read the ICE, 256 in one statement"),
    ("decide_us", "add it to the hub as pending, judge it, and remove it"),
    ("session_us", "the session and its welcome"),
    ("metrics_us", "count and time it"),
    ("log_us", "one line in the log"),
    ("presence_us", "write who is connected, 256 in one transaction"),
)
BINDING = ("together_us", "waits_us", "caches_us")
"""What tells the cost of the steps from that of what binds them."""
_STEPS_SAID = (
    "CPU time on the server's core. Each step alone runs for thousands of ICEs in a row, so its code and tables stay"
    " in the processor's nearest caches. In the gateway the steps alternate and push each other out of the caches."
)
_BINDING = "what binds them, without sockets: caches, coroutines, futures, turns of the loop, switches of threads"
_BOUND_SAID = (
    "Of what binds them, the waits are {waits} µs by themselves: a task and two futures for each ICE. Without loop,"
    " threads and waits the steps cost {caches} µs more if each ICE takes all of them in turn, mostly because the"
    " tables for a signature take the place of other code and data in the caches. The gateway therefore does"
    " each check before the database for many ICEs in a row."
)
CAPTIONS = {
    "bench-admissions.svg": "Admissions per second of each system",
    "bench-memory.svg": "Memory per idle connection of each system",
    "bench-storm.svg": "Seconds until all were back, of each system",
    "bench-drop.svg": "Milliseconds until a dropped connection sees its close, of each system",
}


def number(value: float, unit: str = "") -> str:
    """A value for readers: whole if it is large, three digits if it is small."""
    if unit == "/s" or abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def quantity(value: float, unit: str) -> str:
    joint = "" if unit.startswith(("%", "/")) else " "
    return f"{number(value, unit)}{joint}{unit}".rstrip()


def table(header: list[str], rows: list[list[str]], *, left: int) -> list[str]:
    """A Markdown table; the columns after the first `left` are aligned to the right."""
    line = ["---"] * left + ["---:"] * (len(header) - left)
    return [f"| {' | '.join(row)} |" for row in (header, line, *rows)]


def goals(results: Results) -> list[str]:
    header = ["what", "required", "target", "measured", "lowest to highest", "rounds", "reached"]
    return table(header, [_goal(results, goal) for goal in GOALS], left=1)


def _goal(results: Results, goal: Goal) -> list[str]:
    text = goal.text.format(
        ices=f"{results.ices:,}", table=f"{results.table:,}", crowd=f"{results.crowd:,}"
    )
    wanted = [_limit(goal.required, goal.unit), _limit(goal.target, goal.unit)]
    spread = results.spread(goal.measured)
    if spread is None:
        return [text, *wanted, NOT_MEASURED, "", "0", ""]
    value = (spread.low if goal.more_is_better else spread.high) if goal.worst else spread.median
    measured = quantity(value, goal.unit)
    verdict = goal.verdict(value)
    reached = f"**{verdict}**" if verdict == "no" else verdict
    return [text, *wanted, measured, _range(spread, goal.unit), str(len(spread.values)), reached]


def _limit(value: float, unit: str) -> str:
    joint = "" if unit.startswith("%") else " "
    return f"{value:g}{joint}{unit}".rstrip()


def _range(spread: Spread, unit: str = "") -> str:
    return f"{number(spread.low, unit)} to {number(spread.high, unit)}"


def side_by_side(results: Results) -> list[str]:
    """Every figure that the other systems have, too, a row each."""
    rows = []
    for column in COLUMNS:
        spreads = [results.spread(Figure(system, column.name)) for system in SYSTEMS]
        rows.append(
            [f"{column.title}, {column.unit}".replace("/s, /s", "/s"), *map(_cell, spreads)]
        )
    return table(["median (lowest to highest)", *SYSTEMS], rows, left=1)


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{number(spread.median)} ({_range(spread)})"


def behind(results: Results) -> list[str]:
    """The figures in which another system is ahead of the gateway, in the median of the rounds."""
    found = []
    for column in COLUMNS:
        for system in SYSTEMS:
            ratio = results.spread(Ratio(Figure(GATEWAY, column.name), Figure(system, column.name)))
            if system in (GATEWAY, SESSION_LAYER) or ratio is None:
                continue
            if (ratio.median < 1) if column.more_is_better else (ratio.median > 1):
                found.append(
                    f"- {column.title}: {system}; ours ÷ theirs is {number(ratio.median)}."
                )
    return ["Ahead of the gateway, in the median of the rounds:", "", *found] if found else []


def alone(results: Results) -> list[str]:
    rows = []
    for column in ALONE:
        spread = results.spread(Figure(GATEWAY, column.name))
        if spread is not None:
            median = quantity(spread.median, column.unit)
            rows.append(
                [column.title, median, _range(spread, column.unit), str(len(spread.values))]
            )
    return table(["the gateway alone", "measured", "lowest to highest", "rounds"], rows, left=1)


def microseconds(results: Results) -> list[str]:
    """The steps of an admission, each alone, and their sum in the gateway."""
    layer = results.spread(Figure(SESSION_LAYER, "admission_cpu_us"))
    whole = results.spread(Figure(GATEWAY, "admission_cpu_us"))
    found = [(title, results.spread(Figure(STEPS, name))) for name, title in PARTS]
    if layer is None or whole is None or any(spread is None for _, spread in found):
        return []
    title = "accept, read the request, write the 101: the session layer alone"
    steps = [(title, layer), *((title, spread) for title, spread in found if spread is not None)]
    alone = sum(spread.median for _, spread in steps)
    rows = [[title, number(spread.median), _range(spread)] for title, spread in steps]
    together = results.spread(Figure(STEPS, "together_us"))
    rows.append(["**all steps, each alone**", number(alone), ""])
    if together is not None:
        bound = layer.median + together.median
        rows += [
            [_BINDING, number(bound - alone), ""],
            ["the sockets between them, polls and timers", number(whole.median - bound), ""],
        ]
    else:
        rows.append(["the extra cost when they alternate", number(whole.median - alone), ""])
    rows.append(["**an admission in the gateway**", number(whole.median), _range(whole)])
    return [
        "## Where each microsecond of an admission goes",
        "",
        _STEPS_SAID,
        "",
        *table(["step", "µs", "lowest to highest"], rows, left=1),
        "",
        *_bound(results),
    ]


def _bound(results: Results) -> list[str]:
    """What the extra cost consists of, if it was measured."""
    waits, caches = (results.spread(Figure(STEPS, name)) for name in BINDING[1:])
    if waits is None or caches is None:
        return []
    return [_BOUND_SAID.format(waits=number(waits.median), caches=number(caches.median)), ""]


def figures(results: Results) -> str:
    """The generated part of docs/performance.md: figures, charts, machine and versions."""
    remarks = [f"- {text}." for text in results.notes]
    remarks += [f"- Failed, so without a figure: {text}." for text in results.failures]
    pictures = [f"![{caption}](images/{file})\n" for file, caption in CAPTIONS.items()]
    facts = {**results.machine, "measured on": results.date}
    how = (
        f"{results.ices:,} ICEs, {len(results.rounds)} rounds at most. A ratio compares figures of one round;"
        " *measured* is the median of the rounds."
    )
    lines = [
        how,
        "",
        *goals(results),
        "",
        *remarks,
        *([""] if remarks else []),
        "## Side by side",
        "",
        *side_by_side(results),
        "",
        *behind(results),
        "",
        *alone(results),
        "",
        *pictures,
        *microseconds(results),
        "## Machine and versions",
        "",
        *table(["machine", ""], [[name, value] for name, value in facts.items()], left=2),
        "",
        *table(
            ["version of", ""], [[name, value] for name, value in results.versions.items()], left=2
        ),
    ]
    return "\n".join(lines)


def rendered(document: str, results: Results) -> str:
    """`document` with the part between the two marks generated again; the prose around it stays."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("docs/performance.md has lost its marks")
    return f"{before}{BEGIN}\n\n{figures(results)}\n\n{END}{after}"


def charts(results: Results) -> list[dict[str, Any]]:
    """What `charts.py` draws: bars, or pairs of dots, with the text at each."""
    ices = f"{results.ices:,}"
    return [
        {
            "file": "bench-admissions.svg",
            "title": "Admissions per second",
            "note": f"More is better. {ices} connections, one process on one core; only the gateway checks.",
            "bars": _bars(results, "admissions_per_s", "/s", SYSTEMS),
        },
        {
            "file": "bench-memory.svg",
            "title": "Memory per idle connection, KiB",
            "note": f"Less is better. Resident memory of the server, {ices} connections.",
            "bars": _bars(results, "kib_per_connection", "KiB", SYSTEMS),
        },
        {
            "file": "bench-storm.svg",
            "title": "All back after every connection broke at once, seconds",
            "note": f"Less is better. {ices} connections, all at once.",
            "bars": [
                *_bars(results, "storm_s", "s", (GATEWAY,)),
                *_bars(results, "restart_s", "s", (GATEWAY,), "ICE gateway, kill -9 and restart"),
                *_bars(results, "storm_s", "s", SYSTEMS[2:]),
            ],
        },
        {
            "file": "bench-drop.svg",
            "title": "From the call to the close at the connection, milliseconds",
            "note": f"Less is better; logarithmic. Hollow: p50, filled: p99 of 300; {ices} open. Only ours is durable.",
            "dots": _dots(results),
        },
    ]


def _bars(
    results: Results, name: str, unit: str, systems: tuple[str, ...], label: str = ""
) -> list[dict[str, Any]]:
    bars = []
    for system in systems:
        spread = results.spread(Figure(system, name))
        if spread is not None:
            bars.append(
                {
                    "label": label or system,
                    "tone": _tone(system, secondary=bool(label)),
                    "value": spread.median,
                    "low": spread.low,
                    "high": spread.high,
                    "text": number(spread.median, unit),
                }
            )
    return bars


def _dots(results: Results) -> list[dict[str, Any]]:
    dots = []
    for system in SYSTEMS:
        middle, worst = (
            results.spread(Figure(system, name)) for name in ("drop_p50_ms", "drop_p99_ms")
        )
        if middle is not None and worst is not None:
            values = [middle.median, worst.median]
            dots.append(
                {
                    "label": system,
                    "tone": _tone(system),
                    "values": values,
                    "texts": [number(value) for value in values],
                }
            )
    return dots


def _tone(system: str, *, secondary: bool = False) -> str:
    if system == GATEWAY:
        return "kin" if secondary else "ours"
    return "kin" if system == SESSION_LAYER else "other"


def draw(results: Results, folder: Path) -> None:
    """Write the charts, by the Python that has matplotlib."""
    subprocess.run(
        [str(peers_python()), str(Path(__file__).with_name("charts.py")), str(folder)],
        input=json.dumps(charts(results)),
        text=True,
        check=True,
    )


def write(results: Results) -> None:
    """Render document and charts."""
    draw(results, IMAGES)
    DOCUMENT.write_text(rendered(DOCUMENT.read_text("utf-8"), results), "utf-8")


if __name__ == "__main__":
    try:
        write(Results.load(BENCH))
    except Missing as missing:
        sys.exit(f"missing: {missing}")
