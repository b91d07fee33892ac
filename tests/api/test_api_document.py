"""The served API is held to its own OpenAPI document, always in the same way; see `schemathesis.toml`."""

from __future__ import annotations

import re

from gateway.ice import Action
from tests.api.exceptions import EXEMPT
from tests.api.held import hold, seed

_PHASES = ("Examples", "Coverage", "Fuzzing", "Stateful")


async def held(running, caller, folder, *options):
    await seed(running)
    before = await running.gateway.tail._events.last()
    status, said = await hold(
        running.url, caller.token, folder, "--generation-deterministic", *options
    )
    assert status == 0, said
    assert "Selected: 14/14" in said, f"all calls were to be tested: {said}"
    skipped = {phase for phase in _PHASES if not re.search(rf"✅ +{phase} \(in", said)}
    events = await running.gateway.tail._events.after(before, 10_000)
    return {entry.event.action for entry in events}, skipped, said


async def test_api_does_what_its_document_says(running, tmp_path):
    done, skipped, said = await held(running, running.admin, tmp_path, "--max-examples", "10")
    assert not skipped, said
    missing = {*Action, "disconnect"} - {Action.REGISTER} - done
    assert not missing, f"each action was to be done, not only refused: {said}"
    unused = [exempt.why for exempt in EXEMPT if exempt.why not in said]
    assert not unused, f"these exceptions are needed no more: {unused}"


async def test_api_does_what_its_document_says_to_who_may_not_act(running, tmp_path):
    alice = await running.api("alice")
    # Without links, which begin at what was done; and it would warn of calls that refuse whatever is sent.
    options = ("--phases", "examples,coverage,fuzzing", "--max-examples", "3", "--warnings", "off")
    done, skipped, said = await held(running, alice, tmp_path, *options)
    assert not done, "a member was to change nothing"
    assert skipped == {"Stateful"}, said
