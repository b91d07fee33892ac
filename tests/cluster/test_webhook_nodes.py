"""Two nodes of one database: one sends to webhooks, and the other one goes on where it was."""

from __future__ import annotations

import contextlib

from gateway.app import Tuning
from gateway.node.node import NodeLimits
from gateway.node.webhook_sender import SendingPace
from tests.support.ice import until
from tests.support.receiver import receiving

QUICK = Tuning(node=NodeLimits(sending=SendingPace(look=0.05, poll=0.02, retry=0.05)))
HOOK = {"name": "ops", "events": ["provision"]}
OPTIONS = {"webhooks__allow": ["127.0.0.0/8"], "tuning": QUICK}


def sends(node) -> bool:
    return bool(node.gateway.node.webhook_sender.webhooks)


async def test_one_node_sends_and_the_other_goes_on_when_it_has_left(place):
    async with contextlib.AsyncExitStack() as stack, receiving() as receiver:
        b = await stack.enter_async_context(place.join("node-b", **OPTIONS))
        async with place.join("node-a", **OPTIONS) as a:
            made = await a.admin.post("/webhooks", HOOK | {"url": receiver.url})
            receiver.secret = made.json["secret"]
            await until(lambda: sends(a) or sends(b))
            for number in range(10):
                await (a, b)[number % 2].provision(f"ice-{number}", "ci-cd")
            await receiver.until(lambda one: len(one.once) == 10)
            assert sends(a) is not sends(b)
            first, other = (a, b) if sends(a) else (b, a)
            receiver.down = True
            await other.provision("ice-10", "ci-cd")
            failing = first.gateway.node.webhook_sender
            await until(lambda: any(one.failing for one in failing.webhooks))
            receiver.down = False
            changed = await other.admin.call(
                "PATCH", f"/webhooks/{made.json['webhook']['id']}", json={"enabled": True}
            )
            assert changed.status == 200, "which has it sent at once"
            await receiver.until(lambda one: len(one.once) == 11)
        await b.provision("ice-11", "ci-cd")
        await receiver.until(lambda one: len(one.once) == 12)
    names = [body["data"]["ice_name"] for body in receiver.once]
    assert names == [f"ice-{number}" for number in range(12)]


async def test_a_node_that_has_vanished_is_succeeded(place):
    async with contextlib.AsyncExitStack() as stack, receiving() as receiver:
        a = await stack.enter_async_context(place.join("node-a", **OPTIONS))
        made = await a.admin.post("/webhooks", HOOK | {"url": receiver.url})
        receiver.secret = made.json["secret"]
        await until(lambda: sends(a))
        # As of a node that was killed: its row stays, and nothing renews its lease.
        await a.gateway.engine.write(
            lambda one: one.run("UPDATE webhook_sender SET node = 'killed'")
        )
        await a.gateway.engine.write(
            lambda one: one.run(
                "INSERT INTO ice_nodes (instance, name, version, keys, url, since, seen_seq, draining, lease)"
                " SELECT 'killed', 'node-z', version, keys, url, since, seen_seq, 0, 0.2 FROM ice_nodes"
            )
        )
        await a.provision("ice-1", "ci-cd")
        await until(lambda: sends(a))
        await receiver.until(lambda one: one.taken)
        assert len({message for message, _ in receiver.taken}) == 1
