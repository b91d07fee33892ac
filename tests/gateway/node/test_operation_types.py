"""Every kind, for every type of ICE, asked by everybody that there is: over HTTP, as one table."""

from __future__ import annotations

import itertools

import pytest

from client.protocol import OperationKind
from gateway.core.roles import Role
from tests.support.harness import expect_refused
from tests.support.work import ask, connected

CALLERS = ("admin", "auditor", "owner", "another member", "token", "token of another ICE")
TYPES = {"lab-1": "normal", "build-7": "ci-cd"}
ALLOWED = {
    "normal": {"scrape", "debug", "execute", "remote-execute", "schedule"},
    "ci-cd": {"remote-execute", "schedule"},
}


async def callers(running, name):
    """Who may ask: alice owns the normal ICE; the one for machines has no owner."""
    return {
        "admin": running.admin,
        "auditor": await running.api("eve", Role.AUDITOR),
        "owner": await running.api("alice"),
        "another member": await running.api("bob", Role.MEMBER),
        "token": await running.api("alice", ice=name),
        "token of another ICE": await running.api("root", ice="other"),
    }


@pytest.mark.parametrize("name", TYPES)
async def test_every_kind_by_everybody(running, name):
    ice_type = TYPES[name]
    await connected(running, name, ice_type)
    await running.provision("other")
    asking = await callers(running, name)
    queued = 0
    for kind, who in itertools.product(OperationKind, CALLERS):
        body = {"run_at": "2027-01-01T00:00:00Z"} if kind == "schedule" else {}
        answer = await ask(asking[who], name, kind.value, **body)
        case = f"{kind} at a {ice_type} ICE by {who}: {answer}"
        # To a stranger there is no such ICE; who may only look is told so; then the type decides.
        if who in ("another member", "token of another ICE") or (
            who == "owner" and ice_type == "ci-cd"
        ):
            expected = 404, "not-registered"
        elif who == "auditor":
            expected = 403, "forbidden"
        elif kind.value in ALLOWED[ice_type]:
            expected = 202, None
        else:
            expected = 409, "kind-not-allowed"
        assert answer.status == expected[0], case
        if expected[1] is None:
            queued += 1
        else:
            expect_refused(answer, *expected)
    found = (await running.admin.get("/operations?limit=200")).json["items"]
    assert len(found) == queued
    assert {item["kind"] for item in found} == ALLOWED[ice_type]
