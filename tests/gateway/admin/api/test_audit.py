"""`/audit` over HTTP: who may read it, the head, the proof and the export."""

from __future__ import annotations

import contextlib
import json

import aiohttp
import pytest

from gateway.admin.context import MAX_EXPORTS, MAX_EXPORTS_OF_ALL
from gateway.admin.event_streams import StreamLimits
from gateway.app import Tuning
from gateway.core.roles import Role
from tests.support.harness import ADMIN, expect_refused, hold_to_description


@pytest.fixture(autouse=True)
def described(monkeypatch):
    hold_to_description(monkeypatch)


async def test_the_log_is_proven_and_exported(running):
    await running.provision("lab-1")
    head = (await running.admin.get("/audit/head")).json
    last = (await running.admin.get("/events?limit=200")).json["items"][-1]
    assert head["seq"] == last["seq"]

    kept = f"{head['seq']}:{head['digest']}"
    verdict = (await running.admin.get(f"/audit/verification?head={kept}")).json
    assert (verdict["fault"], verdict["head"]) == (None, head)
    wrong = f"{head['seq']}:{'0' * 64}"
    verdict = (await running.admin.get(f"/audit/verification?head={wrong}")).json
    assert f"event {head['seq']}" in verdict["fault"]
    assert (await running.admin.get("/audit/verification")).json["fault"] is None
    refused = await running.admin.get("/audit/verification?head=newest")
    assert expect_refused(refused, 422, "invalid")["field"] == "head"

    exported = await running.admin.get("/audit/export")
    assert exported.headers["Content-Type"] == "application/jsonl"
    lines = [json.loads(line) for line in exported.body.splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, head["seq"] + 1))
    table = await running.admin.get("/audit/export?format=csv")
    assert table.body.startswith(b"seq,at,actor,")
    expect_refused(await running.admin.get("/audit/export?format=exe"), 422, "invalid")


async def test_only_so_many_exports_run_at_once(running):
    eve, exports = await running.api("eve", Role.AUDITOR), running.gateway.admin.exports
    with contextlib.ExitStack() as others:
        for _ in range(MAX_EXPORTS):
            others.enter_context(exports.use("eve"))
        refused = await eve.get("/audit/export")
        assert str(MAX_EXPORTS) in expect_refused(refused, 429, "too-many-exports")["detail"]
        assert (await running.admin.get("/audit/export")).status == 200
        for number in range(MAX_EXPORTS_OF_ALL - MAX_EXPORTS):
            others.enter_context(exports.use(f"user {number}"))
        expect_refused(await running.admin.get("/audit/export"), 503, "unavailable")
    for _ in range(MAX_EXPORTS + 1):
        assert (await eve.get("/audit/export?format=csv")).status == 200, (
            "each that ends makes room"
        )


async def test_members_read_none_of_it(running):
    member, auditor = await running.api("alice"), await running.api("eve", Role.AUDITOR)
    for path in ("/audit/head", "/audit/verification", "/audit/export", "/nodes"):
        expect_refused(await member.get(path), 403, "forbidden")
        assert (await auditor.get(path)).status == 200


@pytest.mark.sqlite
async def test_a_file_has_no_nodes(running):
    assert (await running.admin.get("/nodes")).json == {"items": [], "next": None}
    expect_refused(await running.admin.post("/nodes/node-a/drain"), 404, "not-found")


@pytest.mark.gateway(tuning=Tuning(streams=StreamLimits(authenticate_every=0)))
async def test_an_export_ends_when_its_caller_loses_the_right(running, monkeypatch):
    olga = await running.api("olga", Role.AUDITOR)
    accounts = running.gateway.services.accounts
    authenticate, asked = accounts.authenticate, []

    async def losing_the_right_after_the_first(secret):
        if asked:
            await accounts.set_role(ADMIN, "olga", Role.MEMBER)
        asked.append(secret)
        return await authenticate(secret)

    monkeypatch.setattr(accounts, "authenticate", losing_the_right_after_the_first)
    with pytest.raises(aiohttp.ClientPayloadError):
        await olga.get("/audit/export")
