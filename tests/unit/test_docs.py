"""What the documents claim is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.exposition import generate_latest

from gateway.metrics import Metrics

ROOT = Path(__file__).parents[2]
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_every_measure_names_tests_that_exist():
    named = re.findall(r"`(test_\w+)::(test_\w+)`", (ROOT / "SECURITY.md").read_text("utf-8"))
    assert len(named) > 30
    files = {path.stem: path for path in (ROOT / "tests").rglob("test_*.py")}
    missing = [
        f"{file}::{test}"
        for file, test in named
        if file not in files or not re.search(rf"\bdef {test}\(", files[file].read_text("utf-8"))
    ]
    assert not missing, f"SECURITY.md names tests that are not there: {missing}"


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{document.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings]
            assert anchor in anchors, f"{document.name} links to {target}"


def test_alerts_ask_for_metrics_that_there_are():
    rules = (ROOT / "config/alerts.yml").read_text("utf-8")
    asked = set(re.findall(r"\b(?:ice_gateway|process)_\w+", rules))
    metrics = Metrics()
    for labelled in (metrics.sessions, metrics.refusals, metrics.closures, metrics.fault):
        labelled.labels("any")
    there = set(re.findall(r"^(\w+)", generate_latest(metrics.registry).decode(), re.MULTILINE))
    assert asked, "no rule asks for anything"
    assert asked <= there, f"no such metric: {asked - there}"
