"""The model gives back what it was made from, and the page is what the runs say."""

from __future__ import annotations

import dataclasses

import pytest

from tests.scale import report
from tests.scale.model import CHECKPOINT, PAGE, images, parameters, predict, touched

SECONDS = 100.0
ICES = 1_000
ROUNDS = 100 / 0.6
"""Of a node in 100 s with 200 writes: half a second lies between two, and a tenth is the pause."""


def phase(nodes: int, **more) -> dict:
    """A phase of 100 s; a node without ICEs takes 0.5 % of a core, PostgreSQL 0.1 % for each."""
    return {
        "seconds": SECONDS,
        "node_cpu": [0.5] * nodes,
        "node_rss": [80e6] * nodes,
        "postgres_cpu": 0.1 * nodes,
        "writes": 100 * nodes,
        "commits": 700 * nodes,
        "wal": 1_000 * nodes,
        "page_images": 0,
        "logged": 0,
        "went": 0,
        "generators_cpu_per_s": 0.0,
        **more,
    }


def phases(nodes: int) -> dict:
    """An idle ICE takes 10 µs a second, an admission 300 µs, 20 at each other node, 100 at PostgreSQL."""
    cpu = [0.5] * nodes
    idle, coming, few = list(cpu), list(cpu), list(cpu)
    idle[0] += 1e-5 * ICES * SECONDS
    coming[0] += 1e-5 * ICES * SECONDS * 0.9 + 300e-6 * ICES
    few[0] += 1e-5 * ICES * SECONDS + 500e-6 * 100
    if nodes > 1:
        coming[-1] += 20e-6 * ICES
        few[-1] += 400e-6 * ROUNDS
    base = phase(nodes)
    rss = [80e6 + 4096 * ICES, *[80e6] * (nodes - 1)]
    ramp = {
        "took": 20.0, "admitted": ICES, "per_s": 50.0, "node_cpu": coming, "node_rss": rss, "logged": 170 * ICES,
        "postgres_cpu": base["postgres_cpu"] + 100e-6 * ICES, "commits": base["commits"] + ICES // 10,
        "writes": base["writes"] + ICES // 20, "wal": base["wal"] + 4_000 * ICES, "generators_cpu_per_s": 0.001,
    }  # fmt: skip
    churn = {
        "admitted": 80, "went": 120, "node_cpu": few, "node_rss": rss, "relation_pages": {"table": 400, "index": 100, "empty": 0},
        "commits": base["commits"] + 300 + round(5 * ROUNDS) * (nodes - 1), "writes": base["writes"] + 200, "page_images": 300,
        "wal": base["wal"] + 5_000 * 100 + 300 * PAGE,
    }  # fmt: skip
    return {
        "empty": base,
        "ramp": phase(nodes, **ramp),
        "quiet": phase(nodes, node_cpu=idle, node_rss=rss),
        "churn": phase(nodes, **churn),
        "idle": {"page_ms": {}, "drop_answered_ms": {}, "drop_closed_ms": {}},
        "restart": {"refused": {"draining": 3}},
        "storm": phase(nodes, missing=0, node_rss=[80e6 + 8192 * ICES] * nodes),
    }


def run(nodes: int, ices: int = ICES, **more) -> dict:
    return {
        "ices": ices, "nodes": nodes, "bystander": False, "phases": phases(nodes), "faults": [],
        "facts": {"idle_s": 60.0, "load": 0.1}, "date": "2026-01-01",
        "machine": {"CPU": "one", "cores": "2", "memory": "24 GiB", "kernel": "Linux"},
        **more,
    }  # fmt: skip


@pytest.fixture
def measured():
    return parameters(phases(1), phases(3), ICES)


def test_the_parameters_are_those_of_the_runs(measured):
    assert measured.session_rss == pytest.approx(4096)
    assert measured.peak_rss == pytest.approx(8192)
    assert measured.session_cpu == pytest.approx(1e-5)
    assert measured.base_commits == pytest.approx(7)
    many, one = measured.admission, measured.coming_and_going
    assert many.node == pytest.approx(300e-6)
    assert measured.follow == pytest.approx(20e-6)
    assert many.postgres == pytest.approx(100e-6)
    assert (many.commits, many.writes) == (pytest.approx(0.1), pytest.approx(0.05))
    assert many.generator == pytest.approx(100e-6)
    assert one.node == pytest.approx(500e-6)
    assert one.commits == pytest.approx(3)
    assert one.wal == pytest.approx(5_000)
    assert measured.round.node == pytest.approx(400e-6)
    assert measured.round.commits == pytest.approx(5, rel=0.01)


def test_the_prediction_for_what_was_measured_is_the_measurement(measured):
    rate = 100 / SECONDS
    one = predict(measured, ICES, 1, rate, SECONDS)
    found = phases(1)
    assert one.node_rss == pytest.approx(found["quiet"]["node_rss"][0])
    assert one.quiet_node_cpu == pytest.approx(found["quiet"]["node_cpu"][0] / SECONDS)
    assert one.churn_node_cpu == pytest.approx(found["churn"]["node_cpu"][0] / SECONDS)
    assert one.commits_per_s == pytest.approx(found["churn"]["commits"] / SECONDS)
    assert one.wal_per_s == pytest.approx(found["churn"]["wal"] / SECONDS)


def test_more_nodes_admit_more_but_each_less(measured):
    ones = [predict(measured, 10**6, nodes, 167.0) for nodes in (10, 20, 40, 1_000)]
    rates = [one.storm_per_s for one in ones]
    assert rates == sorted(rates)
    assert rates[1] < 2 * rates[0]
    assert rates[-1] < 1 / measured.follow


def test_what_others_write_is_read_ten_times_a_second_at_the_most(measured):
    few, many = (predict(measured, ICES, 2, rate).churn_node_cpu for rate in (1e3, 1e6))
    own = measured.coming_and_going.node / 2
    assert many - 1e6 * own == pytest.approx(few - 1e3 * own, rel=0.01)


def test_a_page_is_written_whole_once_in_a_checkpoint():
    assert images([1e9, 1e9, 0], 100) == pytest.approx(200)
    assert images([100, 50], 1e9) == pytest.approx(150)
    assert touched([500, 30], images([500, 30], 0.7 * 90), 90) == pytest.approx(0.7)


def test_the_log_of_a_crowd_is_bounded_by_its_pages(measured):
    busy = predict(measured, ICES, 1, 1e6)
    records = 1e6 * measured.coming_and_going.wal + measured.base_wal
    assert busy.wal_per_s - records == pytest.approx(500 * PAGE / CHECKPOINT)


def test_a_run_takes_the_place_of_an_earlier_one_of_its_size(tmp_path):
    file = tmp_path / "scale.json"
    for one in (run(3, date="2026-01-01"), run(1), run(3, date="2026-01-02")):
        report.add(one, file)
    assert [(one["nodes"], one["date"]) for one in report.load(file)] == [
        (1, "2026-01-01"),
        (3, "2026-01-02"),
    ]


def test_the_page_has_prediction_beside_measurement():
    runs = [run(1), run(3, bystander=True), run(2, 10_000)]
    page = report.figures(runs)
    assert "| predicted · measured | 10,000 at 2 |" in page
    assert "| a million ICEs | 20 nodes | 40 nodes | 60 nodes |" in page
    assert "| refusals | draining 3 | draining 3 | draining 3 |" in page


def test_the_page_says_what_is_not_measured():
    assert "Not measured yet." in report.figures([])
    assert "Only the parameters are measured yet" in report.figures(
        [run(1), run(3, bystander=True)]
    )
    broken = run(2, 10_000, faults=["storm: 3 did not come back"])
    assert "- 10,000 at 2: storm: 3 did not come back." in report.figures([broken])


def test_the_page_is_that_of_the_runs():
    """After a change of the report or of a run by hand: `python -m tests.scale.report`."""
    document = report.DOCUMENT.read_text("utf-8")
    assert report.rendered(document, report.load()) == document


def test_a_page_without_its_marks_is_refused():
    with pytest.raises(ValueError, match="lost its marks"):
        report.rendered("# Capacity\n", [])


def test_the_parameters_name_no_cost_below_zero(measured):
    assert all(value >= 0 for value in dataclasses.astuple(measured.coming_and_going))
