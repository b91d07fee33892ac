"""What the tables of webhooks keep, on both engines: who sends, what was tried, and notices that come once."""

from __future__ import annotations

import functools
from dataclasses import replace
from datetime import timedelta

import msgspec
import pytest

from client.protocol import OperationKind
from gateway.core.operation import Move, Operation
from gateway.core.times import from_text, to_text
from gateway.core.webhook import Webhook, failed
from gateway.store import nodes, notices, operations, webhooks
from gateway.store.nodes import NodeRecord
from gateway.store.webhooks import KEPT, Delivery, SetAside, Webhooks
from tests.contract.domain import NOW, add_registered, change, deregistered, minutes


def a_webhook(webhook_id="w1", *events, **given) -> Webhook:
    default = Webhook(
        webhook_id,
        "ops",
        "https://a.example/x",
        events or ("*",),
        True,
        NOW,
        "k.s",
        0,
        None,
        "root",
        NOW,
    )
    return replace(default, **given)


def a_delivery(number: int) -> Delivery:
    return Delivery(f"log-{number}", "provision", minutes(number), 500, "answered 500", 3)


async def make(engine, *made):
    for webhook in made:
        await engine.write(functools.partial(webhooks.add, webhook=webhook, log_id="log"))


@pytest.fixture
def rows(engine):
    return Webhooks(engine.fetch)


async def waiting(engine, webhook_id="w1"):
    found = await engine.fetch(
        "SELECT type, data FROM webhook_notices WHERE webhook = $1 ORDER BY number", webhook_id
    )
    return [(kind, msgspec.json.decode(data)) for kind, data in found]


async def test_a_webhook_comes_back_as_it_was_stored(engine, rows):
    one = a_webhook(failing=failed(None, "log-1", NOW, "answered 500"))
    other = a_webhook("w2", "provision", "ice.away", enabled=False, createdon=minutes(1))
    await make(engine, one, other)
    assert await rows.all() == [one, other]
    assert await rows.all("nothing") == []
    assert await rows.enabled() == [one]
    assert await rows.find("w2") == other
    assert await rows.find("w3") is None
    assert await rows.log_id() == "log"
    new = replace(one, url="https://b.example", failing=None, position=7)
    await engine.write(lambda transaction: webhooks.update(transaction, new))
    assert await rows.find("w1") == new


async def test_only_the_newest_deliveries_are_kept(engine, rows):
    await make(engine, a_webhook(), a_webhook("w2"))
    for number in range(KEPT + 5):
        one = a_delivery(number)
        await engine.write(functools.partial(webhooks.record, webhook_id="w1", delivery=one))
    await engine.write(lambda one: webhooks.record(one, "w2", a_delivery(1)))
    found = await rows.deliveries("w1", 200)
    assert len(found) == KEPT
    assert found[0].delivery == a_delivery(KEPT + 4)
    assert await rows.deliveries("w1", 3, found[-3].number) == found[-2:]
    assert len(await rows.deliveries("w2", 200)) == 1


async def test_what_was_set_aside_is_kept_once_until_it_is_taken(engine, rows):
    await make(engine, a_webhook())
    given_up = SetAside("log-1", "provision", "{}", NOW, 20, "answered 500")
    for _ in range(2):
        await engine.write(lambda one: webhooks.set_aside(one, "w1", given_up))
    assert await rows.set_aside("w1") == [given_up]
    assert await rows.set_aside_counts() == {"w1": 1}
    await engine.write(lambda one: webhooks.taken(one, "w1", "log-1"))
    assert await rows.set_aside("w1") == []


async def test_deleting_one_takes_with_it_what_was_kept_for_it(engine, rows):
    await make(engine, a_webhook(), a_webhook("w2"))
    for one in ("w1", "w2"):
        await engine.write(
            functools.partial(webhooks.record, webhook_id=one, delivery=a_delivery(1))
        )
    await engine.write(lambda one: webhooks.delete(one, "w1"))
    assert [one.id for one in await rows.all()] == ["w2"]
    assert await rows.deliveries("w1", 10) == []
    assert len(await rows.deliveries("w2", 10)) == 1


async def test_one_node_sends_until_it_is_gone(engine):
    def joining(instance):
        record = NodeRecord(instance, instance, "1", "", "", NOW, 0, draining=False, lease=30)
        return engine.write(lambda one: nodes.join(one, record))

    async def acquire(instance):
        return await engine.write(functools.partial(webhooks.acquire, instance=instance))

    async def holds(instance):
        return await engine.write(functools.partial(webhooks.hold_sender, instance=instance))

    assert await webhooks.sends(engine.fetch, "a") is None
    assert not await acquire("a"), "there is no webhook"
    await make(engine, a_webhook())
    for instance in ("a", "b"):
        await joining(instance)
    assert await acquire("a")
    assert await webhooks.sends(engine.fetch, "a") is True
    assert await webhooks.sends(engine.fetch, "b") is False
    assert not await acquire("b")
    assert (await holds("a"), await holds("b")) == (True, False)
    await engine.write(lambda one: nodes.leave(one, "a"))
    assert await webhooks.sends(engine.fetch, "b") is None
    assert await acquire("b")
    assert (await holds("a"), await holds("b")) == (False, True)


# --- notices -------------------------------------------------------------------------------------


def an_operation():
    return Operation.request(
        operation_id="o1",
        ice_name="lab-1",
        kind=OperationKind.EXECUTE,
        params=b'{"secret":1}',
        requested_by="alice",
        now=NOW,
    )


async def test_an_operation_that_finishes_is_told_in_its_transaction(engine):
    await add_registered(engine)
    await make(
        engine,
        a_webhook(),
        a_webhook("w2", "provision"),
        a_webhook("w3", "operation.finished", enabled=False),
    )
    one = an_operation()
    await engine.write(lambda transaction: operations.insert(transaction, one))
    assert await waiting(engine) == []
    ended = one.moved(Move.CANCEL, minutes(1))
    assert await engine.write(lambda transaction: operations.replace(transaction, one, ended))
    [(kind, data)] = await waiting(engine)
    assert kind == "operation.finished"
    assert data == {
        "id": "o1",
        "ice_name": "lab-1",
        "pool": None,
        "schedule": None,
        "kind": "execute",
        "state": "cancelled",
        "requested_by": "alice",
        "created": to_text(NOW),
        "finished": to_text(minutes(1)),
    }
    assert await waiting(engine, "w2") == []
    assert await waiting(engine, "w3") == []


async def tell_away(engine, *told, now=NOW, after=900.0):
    found = await notices.away(engine.fetch, now - timedelta(seconds=after))
    await engine.write(
        functools.partial(
            notices.tell_away, found=found, webhooks=told, log_id="log", now=now, after=after
        )
    )


async def tell_back(engine, *told, now=NOW):
    found = await notices.ended(engine.fetch)
    await engine.write(
        functools.partial(notices.tell_back, found=found, webhooks=told, log_id="log", now=now)
    )


async def seen(engine, at, name="lab-1"):
    await engine.write(
        lambda one: one.run(
            "UPDATE ice_tokens SET lastseen = $1 WHERE ice_name = $2", to_text(at), name
        )
    )


async def test_an_outage_is_told_once_and_its_end(engine):
    await add_registered(engine)
    one = a_webhook()
    await make(engine, one)
    await seen(engine, minutes(0))
    await tell_away(engine, one, now=minutes(14))
    assert await waiting(engine) == []
    found = await notices.away(engine.fetch, minutes(1))
    for _ in range(2):  # two nodes that have read the same
        await engine.write(
            functools.partial(
                notices.tell_away,
                found=found,
                webhooks=[one],
                log_id="log",
                now=minutes(16),
                after=900.0,
            )
        )
    await tell_away(engine, one, now=minutes(60))
    [(kind, data)] = await waiting(engine)
    assert kind == "ice.away"
    assert data == {
        "ice_name": "lab-1",
        "ice_type": "normal",
        "provisionedto": "alice",
        "lastseen": to_text(NOW),
    }
    await tell_back(engine, one, now=minutes(61))
    assert len(await waiting(engine)) == 1
    await seen(engine, minutes(62))
    for _ in range(2):
        await tell_back(engine, one, now=minutes(63))
    assert [kind for kind, _ in await waiting(engine)] == ["ice.away", "ice.back"]
    await tell_away(engine, one, now=minutes(90))
    assert [kind for kind, _ in await waiting(engine)] == ["ice.away", "ice.back", "ice.away"]


async def test_an_outage_from_before_a_webhook_is_not_told_to_it(engine):
    await add_registered(engine)
    old, new = a_webhook("w1"), a_webhook("w2", enabledon=minutes(30))
    await make(engine, old, new)
    await seen(engine, NOW)
    await tell_away(engine, old, new, now=minutes(31))
    assert len(await waiting(engine, "w1")) == 1
    assert await waiting(engine, "w2") == []


async def test_an_ice_that_is_deregistered_is_no_longer_away(engine):
    ice = await add_registered(engine)
    one = a_webhook()
    await make(engine, one)
    await seen(engine, NOW)
    await tell_away(engine, one, now=minutes(20))
    await change(engine, (ice, deregistered(ice)))
    await tell_back(engine, one, now=minutes(21))
    assert [kind for kind, _ in await waiting(engine)] == ["ice.away"]
    assert await engine.fetch("SELECT * FROM ice_away") == []


async def test_notices_that_are_too_many_are_left_out_with_one_that_says_so(engine, rows):
    await make(engine, a_webhook())

    async def fill(*numbers):
        for number in numbers:
            await engine.write(
                functools.partial(
                    notices.add,
                    rows=[("w1", f"n{number}", "ice.away", to_text(minutes(number)), "{}")],
                )
            )

    async def leave_out():
        for webhook_id, number in await notices.overfull(engine.fetch, 3):
            await engine.write(
                functools.partial(
                    notices.leave_out, webhook_id=webhook_id, number=number, log_id="log"
                )
            )

    await fill(1, 2, 3)
    await leave_out()
    assert len(await waiting(engine)) == 3
    await fill(4, 5)
    await leave_out()
    assert [kind for kind, _ in await waiting(engine)] == ["gap", "ice.away", "ice.away"]
    assert (await waiting(engine))[0][1] == {"notices": 3}
    await fill(6)
    await leave_out()
    assert (await waiting(engine))[0] == ("gap", {"notices": 4})
    oldest = await rows.notice("w1")
    assert (oldest.type, oldest.at) == ("gap", minutes(4))


async def test_what_a_webhook_was_told_is_done(engine, rows):
    await add_registered(engine)
    one = a_webhook()
    await make(engine, one)
    await seen(engine, NOW)
    await tell_away(engine, one, now=minutes(20))
    notice = await rows.notice("w1")
    assert from_text(msgspec.json.decode(notice.data)["lastseen"]) == NOW
    await engine.write(lambda t: webhooks.move_on(t, "w1", 5, None, notice.number))
    assert await rows.notice("w1") is None
    assert (await rows.find("w1")).position == 5


async def test_secrets_are_found_by_the_key_that_sealed_them(engine, rows):
    await make(engine, a_webhook(secret="old.x"), a_webhook("w2", secret="new.y"))
    assert await webhooks.sealed_secrets(engine.fetch, "old") == [("w1", "ops", "old.x")]
    await engine.write(lambda one: webhooks.reseal(one, "w1", "new.z"))
    assert await webhooks.sealed_secrets(engine.fetch, "old") == []
