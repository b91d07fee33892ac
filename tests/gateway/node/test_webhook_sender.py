"""What a receiver gets, in which order, and what happens if it does not take it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace

import pytest

from gateway.app import Tuning
from gateway.core.audit_event import Actor, Event, LogEntry, Via
from gateway.core.webhook import Message, Next
from gateway.node.lease import Lease
from gateway.node.node import NodeLimits
from gateway.node.webhook_sender import SendingPace, WebhookSender
from gateway.runtime.eventloop import cancel_and_wait
from gateway.runtime.webhook_client import Outcome
from gateway.services.webhooks import WantedChanges, WantedWebhook
from gateway.store.engine import StoreUnavailable
from gateway.store.webhooks import Webhooks
from tests.contract.test_webhooks import a_webhook
from tests.support.clock import RunningClock
from tests.support.harness import ADMIN, harness
from tests.support.ice import until
from tests.support.receiver import receiving
from tests.support.work import asked, connected, finished, take

PACE = SendingPace(look=0.01, poll=0.01, answer=5, retry=0.01)
QUICK = Tuning(node=NodeLimits(sending=PACE))
OPTIONS = {"webhooks__allow": ["127.0.0.0/8"], "notices__away_after": "15m"}


@pytest.fixture
def clock():
    return RunningClock()


@pytest.fixture
async def receiver(clock):
    async with receiving(clock) as one:
        yield one


@contextlib.asynccontextmanager
async def serving(tmp_path, clock, tuning=QUICK):
    async with harness(
        tmp_path, clock=clock, monotonic=clock.monotonic, tuning=tuning, **OPTIONS
    ) as running:
        yield running


@pytest.fixture
async def running(tmp_path, clock):
    async with serving(tmp_path, clock) as one:
        yield one


async def make(running, receiver, *events):
    made = await running.gateway.services.webhooks.create(
        ADMIN, WantedWebhook("ops", receiver.url, events or ("*",))
    )
    receiver.secret = made.secret.reveal()
    return made.webhook.id


async def find(running, webhook_id):
    return await Webhooks(running.gateway.engine.fetch).find(webhook_id)


async def log_some(running, *names):
    for name in names:
        await running.provision(name, "ci-cd")


async def test_events_come_in_order_with_what_the_api_says_of_them(running, receiver):
    webhook = await make(running, receiver)
    await log_some(running, "a", "b", "c")
    await receiver.until_taken("create-webhook", "provision", "provision", "provision")
    items = (await running.admin.get("/events?limit=200")).json["items"][-4:]
    assert [body["data"] for _, body in receiver.taken] == items
    assert [body["timestamp"] for _, body in receiver.taken] == [one["at"] for one in items]
    log = await Webhooks(running.gateway.engine.fetch).log_id()
    assert [message for message, _ in receiver.taken] == [f"{log}-{one['seq']}" for one in items]
    last = items[-1]["seq"]
    await until(lambda: any(one.position == last for one in _sender(running).webhooks))
    assert (await find(running, webhook)).position == last


async def test_only_what_is_wanted_comes(running, receiver):
    await make(running, receiver, "deregister")
    await log_some(running, "a")
    ice = await running.provision("lab-1")
    await ice.connect()
    await running.act("lab-1", "deregister")
    await receiver.until_taken("deregister")
    assert receiver.taken[0][1]["data"]["ice_name"] == "lab-1"


@pytest.mark.parametrize("status", [500, 413, 302])
async def test_what_is_not_taken_comes_again_before_the_next(running, receiver, clock, status):
    webhook = await make(running, receiver, "provision")
    receiver.answers = [status, status]
    await log_some(running, "a", "b")
    await until(lambda: _attempts(running) == 1)
    failing = (await find(running, webhook)).failing
    assert (failing.message, failing.attempts) == (receiver.came[0], 1)
    assert failing.error == f"answered {status}"
    clock.skip(seconds=6)
    await until(lambda: _attempts(running) == 2)
    clock.skip(seconds=11)
    await receiver.until_taken("provision", "provision")
    assert receiver.came[0] == receiver.came[1] == receiver.came[2] != receiver.came[3]
    await until(lambda: not _failing(running))


def _sender(running):
    return running.gateway.node.webhook_sender


def _failing(running):
    return [one for one in _sender(running).webhooks if one.failing is not None]


def _attempts(running):
    return max((one.failing.attempts for one in _failing(running)), default=0)


async def test_a_receiver_that_was_gone_for_a_day_gets_everything(running, receiver, clock):
    await make(running, receiver, "provision")
    receiver.down = True
    await log_some(running, "a", "b", "c")
    for hour in range(24):
        await until(lambda tries=hour + 1: _attempts(running) == tries)
        clock.skip(hours=1)
    receiver.down = False
    await receiver.until_taken("provision", "provision", "provision")
    names = [body["data"]["ice_name"] for _, body in receiver.taken]
    assert names == ["a", "b", "c"]


async def test_after_three_days_it_is_set_aside_and_the_next_follows(running, receiver, clock):
    webhook = await make(running, receiver, "provision")
    receiver.answers = [500, 500]
    await log_some(running, "a", "b")
    await until(lambda: _failing(running))
    clock.skip(hours=73)
    await receiver.until_taken("provision")
    assert receiver.taken[0][1]["data"]["ice_name"] == "b"
    rows = Webhooks(running.gateway.engine.fetch)
    [aside] = await rows.set_aside(webhook)
    assert (aside.message, aside.attempts, aside.error) == (receiver.came[0], 2, "answered 500")
    assert aside.at <= clock(), "it is when it was given up, not when it would have come again"
    service = running.gateway.services.webhooks
    receiver.answers = [500]
    assert (await service.send_again(webhook, aside.message)).error == "answered 500"
    assert len(await rows.set_aside(webhook)) == 1
    assert (await service.send_again(webhook, aside.message)).status == 204
    assert await rows.set_aside(webhook) == []
    assert receiver.taken[-1][0] == receiver.came[0]
    assert receiver.taken[-1][1]["data"]["ice_name"] == "a"


async def test_a_receiver_that_hangs_delays_no_other(tmp_path, clock, receiver):
    tuning = Tuning(node=NodeLimits(sending=replace(PACE, answer=0.05)))
    async with serving(tmp_path, clock, tuning) as running:
        await _hang(running, receiver)


async def _hang(running, receiver):
    webhook = await make(running, receiver, "provision")
    receiver.hangs = True
    async with receiving() as other:
        await make(running, other, "provision")
        await log_some(running, "a", "b")
        await other.until_taken("provision", "provision")
    await until(lambda: _failing(running))
    assert "no answer" in (await find(running, webhook)).failing.error


async def test_nothing_is_lost_by_a_restart(tmp_path, clock, receiver):
    async with serving(tmp_path, clock) as running:
        webhook = await make(running, receiver, "provision")
        receiver.down = True
        await log_some(running, "a")
        await until(lambda: _failing(running))
    receiver.down = False
    async with serving(tmp_path, clock) as running:
        assert (await find(running, webhook)).failing.attempts == 1
        await log_some(running, "b")
        clock.skip(seconds=6)
        await receiver.until_taken("provision", "provision")
    assert [body["data"]["ice_name"] for _, body in receiver.taken] == ["a", "b"]


async def test_a_change_is_tried_at_once_and_a_disabled_one_gets_nothing(running, receiver):
    webhook = await make(running, receiver, "provision")
    service = running.gateway.services.webhooks
    receiver.down = True
    await log_some(running, "a")
    await until(lambda: _failing(running))
    await service.change(ADMIN, webhook, WantedChanges(enabled=False))
    await until(lambda: not _sender(running).webhooks)
    await log_some(running, "b")
    receiver.down = False
    await service.change(ADMIN, webhook, WantedChanges(enabled=True))
    await receiver.until_taken("provision", "provision")
    await service.delete(ADMIN, webhook)
    await until(lambda: not _sender(running).webhooks)


async def test_an_operation_that_finishes_is_told(running, receiver):
    await make(running, receiver, "operation.finished")
    connection = await connected(running)
    operation = await asked(running.admin, params={"a": 1})
    await take(connection)
    await finished(connection, operation)
    await receiver.until_taken("operation.finished")
    message, body = receiver.taken[0]
    assert message.startswith("notice-")
    assert (body["data"]["id"], body["data"]["state"]) == (operation, "succeeded")
    assert "params" not in body["data"]


async def test_an_ice_that_stays_away_is_told_once_and_that_it_is_back(running, receiver, clock):
    await make(running, receiver, "ice.away", "ice.back")
    ice = await running.provision("lab-1")
    connection = await ice.connect()
    await running.settled()
    clock.skip(minutes=20)
    await connection.close()
    await running.settled()
    clock.skip(minutes=14)
    assert receiver.types == []
    clock.skip(minutes=2)
    await receiver.until_taken("ice.away")
    clock.skip(hours=3)
    await ice.connect(iat=int(clock().timestamp()))
    await running.settled()
    await receiver.until_taken("ice.away", "ice.back")
    assert [body["data"]["ice_name"] for _, body in receiver.taken] == ["lab-1", "lab-1"]


async def test_pruned_events_are_one_gap(running, receiver, clock):
    webhook = await make(running, receiver, "provision")
    service, audit = running.gateway.services.webhooks, running.gateway.services.audit
    await service.change(ADMIN, webhook, WantedChanges(enabled=False))
    await until(lambda: not _sender(running).webhooks)
    position = (await find(running, webhook)).position
    await log_some(running, "a", "b")
    clock.skip(days=2)
    await audit.prune(ADMIN, clock())
    await log_some(running, "c")
    await service.change(ADMIN, webhook, WantedChanges(enabled=True))
    await receiver.until_taken("gap", "provision")
    first = (await running.admin.get("/events")).json["items"][0]["seq"]
    assert receiver.taken[0][1]["data"] == {"first": position + 1, "last": first - 1}
    assert receiver.taken[0][0].startswith("notice-")
    assert receiver.taken[1][1]["data"]["ice_name"] == "c"


async def test_a_position_beyond_the_end_of_a_restored_log_goes_to_the_end(running, receiver):
    webhook = await make(running, receiver, "provision")
    service = running.gateway.services.webhooks
    await service.change(ADMIN, webhook, WantedChanges(enabled=False))
    await until(lambda: not _sender(running).webhooks)
    await running.gateway.engine.write(
        lambda one: one.run("UPDATE webhooks SET position = 1000000")
    )
    await service.change(ADMIN, webhook, WantedChanges(enabled=True))
    await until(lambda: _sender(running).webhooks)
    await asyncio.sleep(0.05)
    await log_some(running, "a")
    await receiver.until_taken("provision")


async def test_a_secret_whose_key_is_gone_is_said(running, receiver):
    webhook = await make(running, receiver, "provision")
    change = running.gateway.services.webhooks.change
    # Nothing is sent with what a task has read before.
    await change(ADMIN, webhook, WantedChanges(enabled=False))
    await until(lambda: not running.gateway.node.webhook_sender.webhooks)
    await running.gateway.engine.write(
        lambda one: one.run("UPDATE webhooks SET secret = 'lost.AAAA'")
    )
    await change(ADMIN, webhook, WantedChanges(enabled=True))
    await log_some(running, "a")
    await until(lambda: _failing(running))
    assert "token key" in (await find(running, webhook)).failing.error
    assert receiver.came == []


async def test_a_retired_key_delays_nothing(running, receiver):
    webhook = await make(running, receiver, "provision")
    await log_some(running, "a")
    await receiver.until_taken("provision")
    old = (await find(running, webhook)).secret.partition(".")[0]
    for action in (("rotate",), ("promote",)):
        await running.command("keys", *action)
    await running.act("a", "reprovision")
    await running.command("keys", "retire", old)
    await log_some(running, "b")
    await receiver.until_taken("provision", "provision")
    last = running.gateway.node.log.position
    await until(lambda: any(one.position == last for one in _sender(running).webhooks))
    deliveries = await Webhooks(running.gateway.engine.fetch).deliveries(webhook, 10)
    assert [one.delivery.error for one in deliveries] == [None, None]


# --- without a database --------------------------------------------------------------------------


class FakeOutbox:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.hooks = []
        self.asked: list[str] = []
        self.sender = True
        self.seconds: list[float] = []
        self.faults: list[Exception] = []
        self.messages = 1
        self.end = 0
        self.reads = 0

    async def enabled(self):
        self.asked.append("enabled")
        if self.faults:
            raise self.faults.pop(0)
        return self.hooks

    async def find(self, webhook_id):
        return next((one for one in self.hooks if one.id == webhook_id), None)

    async def acquire(self):
        self.asked.append("acquire")
        return self.sender

    async def next(self, webhook, position):
        self.reads += 1
        if self.faults:
            raise self.faults.pop(0)
        left = position < self.messages
        message = Message(f"log-{position + 1}", "provision", b"{}", position + 1)
        return Next(message if left else None, max(position, self.end))

    async def send(self, webhook, message, seconds):
        self.asked.append(f"send {message.id}")
        self.seconds.append(seconds)
        return Outcome(204, None, 1)

    async def record(self, webhook, message, outcome):
        return a_webhook(position=message.position)

    async def keep_position(self, webhook, position):
        self.asked.append(f"keep {position}")

    async def look_for_outages(self, enabled, *, away):
        """Nobody is away."""


@pytest.fixture
def outbox():
    return FakeOutbox()


@contextlib.asynccontextmanager
async def sending(outbox, *, lease=None, held=lambda: False, monotonic=time.monotonic):
    counted = []
    sender = WebhookSender(
        clock=RunningClock(),
        monotonic=monotonic,
        lease=lease or Lease.forever(),
        held=held,
        delivered=counted.append,
        away_after=60,
        pace=PACE,
    )
    task = asyncio.create_task(sender.run(outbox))
    try:
        yield sender
    finally:
        await cancel_and_wait(task)
        assert sender.webhooks == []


async def turns(number=20):
    """Let the loop run all that is ready, and what that makes ready."""
    for _ in range(number):
        await asyncio.sleep(0)


def an_event(clock, action, **detail):
    return LogEntry(1, Event.of(clock(), Actor("root", Via.API, ""), action, **detail), "")


async def test_without_a_webhook_it_looks_at_the_start_and_after_their_events_alone(outbox, clock):
    async with sending(outbox) as sender:
        await until(lambda: outbox.asked == ["enabled"])
        sender.apply(an_event(clock, "provision"))
        await turns()
        assert outbox.asked == ["enabled"]
        outbox.hooks = [a_webhook()]
        sender.apply(an_event(clock, "create-webhook", webhook="w1"))
        await until(lambda: "send log-1" in outbox.asked)


async def test_another_node_sends(outbox):
    outbox.hooks, outbox.sender = [a_webhook()], False
    async with sending(outbox) as sender:
        await until(lambda: outbox.asked.count("acquire") > 2)
        assert sender.webhooks == []
        outbox.sender = True
        await until(lambda: "send log-1" in outbox.asked)
        outbox.sender = False
        await until(lambda: sender.webhooks == [])


async def test_nothing_is_sent_without_the_lease_or_longer_than_it_lasts(outbox):
    now = [0.0]
    lease = Lease(30, lambda: now[0])
    outbox.hooks = [a_webhook()]
    async with sending(outbox, lease=lease):
        await until(lambda: len(outbox.asked) > 2)
        assert "acquire" not in outbox.asked
        now[0] = 28.0
        lease.renew(0.0)
        await until(lambda: outbox.seconds)
        assert outbox.seconds == [2.0]


async def test_a_restored_backup_sends_nothing_until_it_is_confirmed(outbox, clock):
    outbox.hooks, held = [a_webhook()], [True]
    async with sending(outbox, held=lambda: held[0]) as sender:
        await turns()
        assert outbox.asked == []
        held[0] = False
        sender.apply(an_event(clock, "confirm-restore"))
        await until(lambda: "send log-1" in outbox.asked)


async def test_a_database_that_is_away_is_asked_again(outbox):
    outbox.hooks = [a_webhook()]
    outbox.faults = [StoreUnavailable("gone"), StoreUnavailable("gone")]
    async with sending(outbox):
        await until(lambda: "send log-1" in outbox.asked)


async def test_a_fault_of_ours_does_not_stop_the_gateway(outbox):
    outbox.hooks = [a_webhook()]
    outbox.faults = [RuntimeError("a fault"), RuntimeError("another")]
    async with sending(outbox):
        await until(lambda: "send log-1" in outbox.asked)


async def test_a_position_is_stored_once_nothing_has_happened_for_a_while(outbox, clock):
    outbox.hooks, outbox.messages = [a_webhook()], 0
    outbox.end = 7
    async with sending(outbox, monotonic=clock.monotonic):
        await until(lambda: outbox.reads > 3)
        assert "keep 7" not in outbox.asked
        clock.skip(seconds=11)
        await until(lambda: "keep 7" in outbox.asked)
        clock.skip(seconds=60)
        read = outbox.reads
        await until(lambda: outbox.reads > read + 3)
        assert outbox.asked.count("keep 7") == 1
