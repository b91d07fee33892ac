"""The served API is held to its own OpenAPI document, always in the same way; see `schemathesis.toml`."""

from __future__ import annotations

import re

import pytest

from gateway.admin import openapi
from gateway.core.ice import Action
from tests.api.held import hold, seed

_ALL = """
# Of the 4,000 calls of this phase, 1,400 are bulk calls whose members do not go together, which all get the
# same 422, and 180 have the filters of listIces. The other phases and `make torture` make both.
[[operations]]
include-operation-id = ["bulk", "countIces"]
phases.coverage.enabled = false

# Often enough that each is done, and not only refused.
[[operations]]
include-operation-id = ["reprovisionIce", "reregisterIce", "disconnectIce"]
generation.max-examples = 12

[[operations]]
include-operation-id = ["deregisterIce"]
generation.max-examples = 30
"""
_FEWER = """
# Some 750 of the 3,100 calls: each operation is called in one of the two large phases. The bodies of those without
# coverage are held in their twins, and their filters in those of listEvents; those of webhooks by `make torture`.
[[operations]]
include-operation-id = [
    "listIces", "listOperations", "listSchedules", "requestPoolOperation", "createEnrolmentKey",
    "changeSchedule", "createWebhook", "changeWebhook",
]
phases.coverage.enabled = false

[[operations]]
exclude-operation-id = [
    "bulk", "countIces", "listIces", "listOperations", "listSchedules", "requestPoolOperation",
    "createEnrolmentKey", "changeSchedule", "createWebhook", "changeWebhook", "reprovisionIce",
    "reregisterIce", "disconnectIce", "deregisterIce",
]
phases.fuzzing.enabled = false

[phases.coverage]
unexpected-methods = ["TRACE"]
"""
_PHASES = ("Examples", "Coverage", "Fuzzing", "Stateful")


@pytest.mark.timeout(
    600
)  # up to 15 s of processor time, of which a busy machine gives it an eighth
@pytest.mark.parametrize(
    ("settings", "hooks"),
    [
        pytest.param(_ALL + _FEWER, "tests.api.fewer", id="fewer"),
        pytest.param(_ALL, "tests.api.exceptions", id="all", marks=pytest.mark.long),
    ],
)
async def test_api_does_what_its_document_says(running, tmp_path, settings, hooks):
    await seed(running)
    before = await running.gateway.admin.events.last()
    status, said = await hold(
        running.url,
        running.admin.token,
        tmp_path,
        *("--generation-deterministic", "--max-examples", "2", "--warnings", "off"),
        settings=settings,
        hooks=hooks,
    )
    assert status == 0, said
    calls = sum(
        method in {"get", "post", "put", "patch", "delete"}
        for path in openapi.document()["paths"].values()
        for method in path
    )
    tested = re.search(r"Selected: (\d+)/(\d+)", said)
    assert tested, said
    assert tested[1] == tested[2] == str(calls), f"all calls were to be tested: {said}"
    skipped = [phase for phase in _PHASES if not re.search(rf"✅ +{phase} \(in", said)]
    assert not skipped, said
    events = await running.gateway.admin.events.after(before, 10_000)
    done = {entry.event.action for entry in events}
    missing = {*Action, "disconnect"} - {Action.REGISTER} - done
    assert not missing, f"each action was to be done, not only refused: {said}"
