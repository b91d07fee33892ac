"""The report says what was measured, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import report, systems
from tests.bench.goals import (
    BARE_AIOHTTP,
    GATEWAY,
    GOALS,
    SESSION_LAYER,
    STEPS,
    SYSTEMS,
    Figure,
    Goal,
    Ratio,
    Sum,
)
from tests.bench.results import Results

OURS = Figure(GATEWAY, "admissions_per_s")
THEIRS = Figure(BARE_AIOHTTP, "admissions_per_s")


def results(*rounds: dict[str, dict[str, float]]) -> Results:
    return Results(
        10_000, 100_000, 18_000, "2026-01-01", {"CPU": "one"}, {"Python": "3"}, list(rounds)
    )


def admissions(ours: float, theirs: float) -> dict[str, dict[str, float]]:
    return {GATEWAY: {OURS.name: ours}, BARE_AIOHTTP: {THEIRS.name: theirs}}


def test_a_ratio_is_made_within_each_round_and_the_median_speaks():
    # The ratio of the medians would be 2.
    measured = results(admissions(200, 100), admissions(90, 60), admissions(300, 250))
    spread = measured.spread(Ratio(OURS, THEIRS))
    assert spread.values == (2.0, 1.5, 1.2)
    assert (spread.median, spread.low, spread.high) == (1.5, 1.2, 2.0)


def test_a_ratio_needs_both_sides_of_the_same_round():
    measured = results({GATEWAY: {OURS.name: 10}}, {BARE_AIOHTTP: {THEIRS.name: 5}})
    assert measured.spread(Ratio(OURS, THEIRS)) is None
    assert measured.spread(OURS).values == (10,)


def test_what_binds_the_steps_is_said_once_it_was_measured():
    steps = {name: 1.0 for name, _ in report.PARTS} | {"together_us": 30.0}
    layer, whole = {"admission_cpu_us": 60.0}, {"admission_cpu_us": 100.0}
    before = results({GATEWAY: whole, SESSION_LAYER: layer, STEPS: steps})
    now = {GATEWAY: whole, SESSION_LAYER: layer, STEPS: {**steps, "waits_us": 2.7, "caches_us": 41}}
    said = set(report.microseconds(results(now))) - set(report.microseconds(before))
    (sentence,) = said - {""}
    assert "2.70 µs" in sentence
    assert "41.0 µs" in sentence


def test_a_sum_needs_all_its_parts_in_the_round():
    whole, parts = (
        results({GATEWAY: {"a": 6}, STEPS: {"b": 1, "c": 2}}, {GATEWAY: {"a": 6}}),
        ("b", "c"),
    )
    floor = Sum(tuple(Figure(STEPS, name) for name in parts))
    assert whole.spread(floor).values == (3,)
    assert whole.spread(Ratio(Figure(GATEWAY, "a"), floor)).values == (2,)


@pytest.mark.parametrize(
    ("value", "verdict"), [(3, "target"), (3.01, "required"), (5, "required"), (6, "no")]
)
def test_less_is_better(value, verdict):
    assert Goal("memory", OURS, 5, 3).verdict(value) == verdict


@pytest.mark.parametrize(("value", "verdict"), [(1.2, "target"), (1.0, "required"), (0.99, "no")])
def test_more_is_better(value, verdict):
    assert Goal("ratio", OURS, 1.0, 1.2, more_is_better=True).verdict(value) == verdict


def test_of_what_must_not_be_missed_the_worst_round_counts():
    missed = Figure(GATEWAY, "drops_missed")
    [row] = [
        line
        for line in report.goals(results(*({GATEWAY: {missed.name: n}} for n in (0, 0, 7))))
        if "missed of 300" in line
    ]
    assert row.endswith("| 7.00 | 0 to 7.00 | 3 | **no** |")


def test_every_goal_has_its_row_measured_or_not():
    rows = report.goals(results())[2:]
    assert len(rows) == len(GOALS)
    for goal, row in zip(GOALS, rows, strict=True):
        assert goal.text.format(ices="10,000", table="100,000", crowd="18,000") in row
        assert report.NOT_MEASURED in row


def test_who_is_ahead_of_the_gateway_is_said():
    said = "\n".join(report.behind(results(admissions(100, 200))))
    assert f"admissions/s: {BARE_AIOHTTP}; ours ÷ theirs is 0.50" in said
    assert not report.behind(results(admissions(200, 100)))


def test_failures_and_what_there_was_no_time_for_are_said():
    measured = results()
    measured.failures.append("Node socket.io: storm")
    measured.notes.append("The time was over after 2 of 5 costly rounds")
    made = report.figures(measured)
    assert "Node socket.io: storm" in made
    assert "2 of 5 costly rounds" in made


def test_prose_around_the_figures_stays():
    before = f"# Title\n\nprose\n\n{report.BEGIN}\nold\n{report.END}\n\nmore prose\n"
    made = report.rendered(before, results(admissions(2, 1)))
    assert made.startswith("# Title\n\nprose\n")
    assert made.endswith("\n\nmore prose\n")
    assert "old" not in made
    assert report.rendered(made, results(admissions(2, 1))) == made


def test_a_document_without_marks_is_left_alone():
    with pytest.raises(ValueError, match="lost its marks"):
        report.rendered("# Title", results())


def test_what_is_measured_has_the_names_of_the_goals():
    others = systems.peers(Path("python"), Path("modules"))
    assert (systems.SESSION_LAYER.name, *(one.name for one in others)) == SYSTEMS[1:]
    assert SYSTEMS[:2] == (GATEWAY, SESSION_LAYER)
    for one in Results.load(report.BENCH).rounds:
        assert set(one) <= {*SYSTEMS, STEPS}


def test_bench_json_is_as_it_is_saved(tmp_path):
    Results.load(report.BENCH).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text("utf-8") == report.BENCH.read_text("utf-8")


def test_the_document_is_what_bench_json_renders_to():
    document = report.DOCUMENT.read_text("utf-8")
    assert report.rendered(document, Results.load(report.BENCH)) == document


def test_the_charts_show_what_bench_json_says():
    charts = report.charts(Results.load(report.BENCH))
    assert [chart["file"] for chart in charts] == list(report.CAPTIONS)
    for chart in charts:
        drawn = (report.IMAGES / chart["file"]).read_text("utf-8")
        rows = chart.get("bars") or chart["dots"]
        for text in (chart["title"], chart["note"], *(row["label"] for row in rows)):
            assert f">{text}</text>" in drawn
        for text in [text for row in rows for text in row.get("texts", [row.get("text")])]:
            assert f">{text}</text>" in drawn, f"{chart['file']} does not say {text}"


def test_no_figure_is_measured_without_being_shown():
    shown = {goal.measured.name for goal in GOALS if isinstance(goal.measured, Figure)}
    shown |= {column.name for column in (*report.COLUMNS, *report.ALONE)}
    shown |= {name for name, _ in report.PARTS} | {*report.BINDING}
    measured = {
        name
        for one in json.loads(report.BENCH.read_text("utf-8"))["rounds"]
        for figures in one.values()
        for name in figures
    }
    assert measured <= shown
