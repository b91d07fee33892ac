"""Failed logins become events: one a minute for a user, and few a minute in all."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.audit_event import Via
from gateway.services.login_failures import MAX_A_MINUTE, FailureReason, LoginFailures
from gateway.store.engine import StoreUnavailable
from tests.contract.domain import NOW, PATIENCE, Between, log, minutes, soon


class Node:
    """A node that notes failed logins, with a clock that is set."""

    def __init__(self, engine, **limits) -> None:
        self.engine = engine
        self.now = NOW
        self.between = Between(engine)
        self.failures = LoginFailures(self.between, lambda: self.now, lambda _: None, **limits)

    def fails(self, user="alice", address="192.0.2.7", times=1) -> None:
        for _ in range(times):
            self.failures.note(FailureReason.WRONG_PASSWORD, address, user)

    async def events(self):
        """What was written since this was last asked."""
        await self.failures.write()
        return [
            (entry.event.detail["user"], entry.event.detail["count"], entry.event.actor.address)
            for entry in await log(self.engine)
            if entry.event.action == "login-failed" and entry.event.at == self.now
        ]


@pytest.fixture
def node(engine) -> Node:
    return Node(engine)


async def test_an_event_counts_what_failed_since_the_last(node):
    node.fails(times=2)
    node.fails(address="192.0.2.8")
    assert await node.events() == [("alice", 3, "192.0.2.8")]
    [*_, entry] = await log(node.engine)
    assert (entry.event.actor.name, entry.event.actor.via) == ("alice", Via.PAGE)
    node.now = minutes(0.5)
    node.fails(times=4)
    assert await node.events() == [], "one a minute at the most"
    node.now = minutes(1)
    assert await node.events() == [("alice", 4, "192.0.2.7")], "none is left out"
    node.now = minutes(3)
    assert await node.events() == [], "each is told once"


async def test_somebody_whom_only_the_issuer_knows_is_counted_by_their_subject(node):
    for name in ("ada", "ada.l"):
        node.failures.note(FailureReason.SSO_NAME, "192.0.2.7", subject="a-1", name=name)
    node.failures.note(FailureReason.SSO_GROUPS, "192.0.2.7", "alice", subject="c-1")
    node.failures.note(FailureReason.SSO_STATE, "192.0.2.7")
    assert await node.events() == [("sso/a-1", 2, "192.0.2.7"), ("alice", 1, "192.0.2.7")]
    [*_, unknown, known] = (entry.event.detail for entry in await log(node.engine))
    assert (unknown["why"], unknown["subject"], unknown["name"]) == ("sso-name", "a-1", "ada.l")
    assert (known["why"], known["subject"], known.get("name")) == ("sso-groups", "c-1", None)


async def test_a_user_has_an_event_a_minute_on_all_nodes_and_across_restarts(node):
    other = Node(node.engine)
    node.fails()
    assert await node.events() == [("alice", 1, "192.0.2.7")]
    other.now = minutes(0.9)
    other.fails()
    assert await other.events() == []
    other.now = minutes(1)
    assert await other.events() == [("alice", 1, "192.0.2.7")]


async def test_all_users_have_so_many_events_a_minute(node):
    names = [f"u{number}" for number in range(MAX_A_MINUTE + 3)]
    for name in names:
        node.fails(name)
    assert [user for user, _, _ in await node.events()] == names[:MAX_A_MINUTE]
    node.now = minutes(0.5)
    for name in names:
        node.fails(name)
    assert await node.events() == []
    node.now = minutes(1)
    told = [(user, count) for user, count, _ in await node.events()]
    assert len(told) == MAX_A_MINUTE
    assert set(names[MAX_A_MINUTE:]) <= {user for user, _ in told}, "who waits longest is first"


async def test_a_clock_that_was_set_back_holds_no_event_back(node):
    node.fails()
    await node.failures.write()
    node.now = minutes(-60)
    node.fails()
    assert await node.events() == [("alice", 1, "192.0.2.7")]


async def test_what_could_not_be_written_is_written_later(node):
    node.fails()
    gate = node.between.hold("write", fails=True)
    gate.open.set()
    with pytest.raises(StoreUnavailable):
        await node.failures.write()
    node.fails()
    assert await node.events() == [("alice", 2, "192.0.2.7")]


async def test_what_fails_while_it_is_written_is_not_lost(node):
    node.fails()
    gate = node.between.hold("write")
    writing = asyncio.create_task(node.failures.write())
    await soon(gate.reached.wait(), "the attempt to write")
    node.fails(address="192.0.2.8")
    gate.open.set()
    await soon(writing, "the end of the attempt")
    node.now = minutes(1)
    assert await node.events() == [("alice", 1, "192.0.2.8")]


async def test_what_waits_is_bounded(engine):
    node = Node(engine, max_users=2)
    for name in ("a", "b", "c"):
        node.fails(name, times=2)
    assert [(user, count) for user, count, _ in await node.events()] == [("a", 2), ("b", 2)]


async def failed(node):
    """Whose failed logins are in the log."""
    return [
        entry.event.actor.name
        for entry in await log(node.engine)
        if entry.event.action == "login-failed"
    ]


async def test_it_runs_until_all_is_written(engine):
    node = Node(engine, pause=0)
    gate = node.between.hold("write", fails=True)
    running = asyncio.create_task(node.failures.run())
    node.fails()
    await soon(gate.reached.wait(), "an attempt to write")
    second = node.between.hold("write")
    gate.open.set()
    await soon(second.reached.wait(), "another attempt")
    second.open.set()
    node.fails("bob")
    async with asyncio.timeout(PATIENCE):
        while "bob" not in await failed(node):  # noqa: ASYNC110 - no event tells of the log
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    assert await failed(node) == ["alice", "bob"]
