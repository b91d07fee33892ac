"""Alerts, the dashboard and the operator's page speak of the metrics that there are."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

from gateway.core.times import utc_now
from gateway.store.waits import Backlog
from gateway.web.metrics import Metrics
from gateway.web.operation_metrics import BacklogMetrics

ROOT = Path(__file__).parents[2]
TARGET = {"job", "instance"}
"""The labels that Prometheus adds."""
NAMES = r"\b(?:(?:ice_gateway|process)_\w+|up\b)"
QUOTED = r'"[^"]*"'


def exposed() -> dict[str, set[str]]:
    """The labels of each sample that a scrape can bring, by its name."""

    async def read(_: object) -> Backlog:
        return Backlog(0, 0, {}, 0)

    metrics, backlog = Metrics(), BacklogMetrics(read, utc_now)
    metrics.registry.register(backlog)
    asyncio.run(backlog.refresh())
    for metric in (*vars(metrics).values(), *vars(metrics.operations).values()):
        if isinstance(metric, MetricWrapperBase) and metric._labelnames:
            metric.labels(*("any" for _ in metric._labelnames))
    found: dict[str, set[str]] = {"up": set()}  # Prometheus makes it
    for family in metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


EXPOSED = exposed()


def queries() -> dict[str, tuple[str, str]]:
    """Each expression, and the text in which its labels are shown, by the alert or panel."""
    [group] = yaml.safe_load((ROOT / "config/alerts.yml").read_text("utf-8"))["groups"]
    found = {
        rule["alert"]: (rule["expr"], " ".join(rule["annotations"].values()))
        for rule in group["rules"]
    }
    dashboard = json.loads((ROOT / "config/grafana/ice-gateway.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            name = f"{panel['title']}, {target['refId']}"
            found[name] = target["expr"], target["legendFormat"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found[f"${variable['name']}"] = variable["query"]["query"], ""
    return found


def words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"\w+", text)}


@pytest.mark.parametrize(("expression", "text"), queries().values(), ids=queries())
def test_queries_ask_for_metrics_and_labels_that_there_are(expression, text):
    asked = set(re.findall(NAMES, expression))
    assert asked, "it asks for nothing"
    assert asked <= set(EXPOSED), "no such metric"
    for name, matchers in re.findall(rf"({NAMES}){{(.*?)}}", expression):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(QUOTED, "", matchers)))
        assert labels, "a matcher of nothing"
        assert labels <= EXPOSED[name] | TARGET, f"no such label of {name}"
    there = set.union(*(EXPOSED[name] for name in asked)) | TARGET
    grouped = words(re.findall(r"\b(?:by|on) \((.*?)\)", expression))
    assert grouped <= there, "it groups by labels that there are not"
    named = set(re.findall(r"{{\s*(?:\$labels\.)?(\w+)\s*}}", text))
    remain = grouped if re.search(r"\bby \(", expression) else there
    assert named <= remain, "it shows labels that the result has not"


def test_every_counter_is_there_before_it_counts():
    """`increase` does not see how a series begins: without a zero the first stolen token would raise no alert."""
    there = Metrics()
    counters = [
        metric
        for metric in (*vars(there).values(), *vars(there.operations).values())
        if isinstance(metric, Counter)
    ]
    assert len(counters) > 10
    for counter in counters:
        [family] = counter.collect()
        assert {sample.value for sample in family.samples if sample.name.endswith("_total")} == {0}
    for expression, _ in queries().values():
        for name, label, value in re.findall(rf'({NAMES}_total){{(\w+)="([^"]*)"}}', expression):
            assert there.registry.get_sample_value(name, {label: value}) == 0, expression


def test_the_operators_page_has_every_metric():
    text = (ROOT / "docs/operation.md").read_text("utf-8")
    [table] = re.findall(r"\| metric \| shows \|\n(.*?)\n\n", text, re.DOTALL)
    listed = {
        name: set(filter(None, labels.split(", ")))
        for name, labels in re.findall(r"`(ice_gateway_\w+)(?:{(.*?)})?`", table)
    }
    parts = ("_bucket", "_count", "_sum", "_created")
    there: dict[str, set[str]] = {}
    for name, labels in EXPOSED.items():
        if name.startswith("ice_gateway_") and not name.endswith("_created"):
            whole = next((name.removesuffix(part) for part in parts if name.endswith(part)), name)
            there.setdefault(whole, set()).update(labels - {"le"})
    assert listed == there


def test_the_panels_do_not_overlap():
    dashboard = json.loads((ROOT / "config/grafana/ice-gateway.json").read_text("utf-8"))
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(numbers) == len(set(numbers))
