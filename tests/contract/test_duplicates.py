"""Presence finds two running copies of an ICE, and stores what that needs, on both engines."""

from __future__ import annotations

import pytest

from client.protocol import Hello
from gateway.core.attention import DUPLICATE_FOR, Attention
from gateway.core.times import to_text
from gateway.node.presence import Presence
from gateway.node.session import Session
from gateway.store.engine import OutcomeUnknown
from gateway.store.ice_listing import IceFilter, IceListing
from tests.contract.domain import NOW, Between, add_registered, change, log, minutes, reregistered


class Fleet:
    """Nodes that each hold one ICE's newest session in turn."""

    def __init__(self, engine, ice) -> None:
        self.engine = engine
        self.ice = ice
        self.between = Between(engine)
        self.now = NOW
        self.counted = 0
        self.readings = 0
        self.nodes = {
            name: Presence(self.between, f"node-{name}", lambda: self.now, self._count)
            for name in "xy"
        }

    def _count(self, found: int) -> None:
        self.counted += found

    def connect(self, instance, *, at, node="x", address="192.0.2.7", hostname="desk", reading=0):
        """A session that says hello; it is not written yet."""
        self.now, self.readings = minutes(at), self.readings + 1
        number = float(reading or self.readings) if self.engine.shared else 0.0
        session = Session(
            self.ice,
            session_id=f"s{self.readings}",
            seq=0,
            address=address,
            since=self.now,
            observer=None,
            reading=number,
        )
        self.nodes[node].opened(session)
        session.hello = Hello(hostname=hostname)
        self.nodes[node].greeted(session, instance)

    async def flush(self) -> None:
        for node in self.nodes.values():
            assert await node.flush()

    async def connects(self, instance, **how) -> None:
        self.connect(instance, **how)
        await self.flush()

    async def alternate(self, letters, *, start=0.0, step=1.5) -> None:
        """Copies on two nodes come one after the other, each from an address of its own."""
        for number, letter in enumerate(letters):
            how = {"node": "xy"[letter > "a"], "address": f"192.0.2.{ord(letter)}"}
            await self.connects(letter, at=start + number * step, hostname=f"host-{letter}", **how)

    async def events(self):
        return [one.event for one in await log(self.engine) if one.event.action == "duplicate"]

    async def attention(self, at):
        listed = await IceListing(self.engine).find("lab-1")
        where = IceFilter(attention=Attention.DUPLICATE, now=at)
        found = await IceListing(self.engine).page(where, 9)
        counts = await IceListing(self.engine).counts(IceFilter(), at)
        assert len(found) == counts.attention[Attention.DUPLICATE]
        assert (Attention.DUPLICATE in listed.attention(at)) is bool(found)
        return listed.attention(at)


@pytest.fixture
async def fleet(engine):
    return Fleet(engine, await add_registered(engine))


async def test_two_copies_on_two_nodes_are_one_event_that_names_both(fleet):
    await fleet.alternate("aba")
    assert await fleet.events() == []
    assert await fleet.attention(minutes(5)) == []
    await fleet.connects("b", at=4.5, node="y", address="192.0.2.98", hostname=None)
    [event] = await fleet.events()
    assert (event.at, event.ice_name, event.generation) == (minutes(4.5), "lab-1", 1)
    assert (event.actor.name, event.actor.via, event.actor.address) == (
        *("lab-1", "ice"),
        "192.0.2.98",
    )
    assert event.detail == {
        "generation_before": 1,
        "copies": [
            {"instance": "b", "address": "192.0.2.98", "hostname": None},
            {"instance": "a", "address": "192.0.2.97", "hostname": "host-a"},
        ],
    }
    assert fleet.counted == 1
    assert await fleet.attention(minutes(5)) == [Attention.DUPLICATE]


async def test_an_event_a_day_and_attention_until_a_day_passes_without_another(fleet):
    await fleet.alternate("abababab")
    assert len(await fleet.events()) == 1
    last, day = minutes(7 * 1.5), 24 * 60
    assert await fleet.attention(last + DUPLICATE_FOR / 2) == [Attention.DUPLICATE]
    assert await fleet.attention(last + DUPLICATE_FOR) == []
    await fleet.alternate("ab", start=day)
    assert len(await fleet.events()) == 1, "a day since the event has not passed at the second"
    await fleet.alternate("ab", start=day + 5)
    assert len(await fleet.events()) == 2
    assert await fleet.attention(minutes(day + 5) + DUPLICATE_FOR) == [Attention.DUPLICATE]


async def test_a_reregistration_ends_it_and_begins_anew(fleet):
    await fleet.alternate("abab")
    before, fleet.ice = fleet.ice, reregistered(fleet.ice)
    await change(fleet.engine, (before, fleet.ice))
    assert await fleet.attention(minutes(6)) == []
    fleet.ice = fleet.ice.register("another key", now=minutes(6))
    await change(fleet.engine, (reregistered(before), fleet.ice))
    await fleet.alternate("ab", start=7)
    assert await fleet.attention(minutes(12)) == []
    fleet.ice = before
    await fleet.alternate("ab", start=12)
    assert await fleet.attention(minutes(17)) == [], "hellos of an older generation came late"


@pytest.mark.parametrize(
    "hellos",
    [
        # A laptop changes networks.
        [("a", "192.0.2.1", "desk"), ("a", "10.0.0.1", "desk"), ("a", "192.0.2.1", "desk")] * 3,
        # A container gets another name with each start.
        [(f"start {number}", "192.0.2.1", f"pod-{number}") for number in range(12)],
        # A client restarts quickly, and connects twice each time.
        [(f"start {number // 2}", "192.0.2.1", "desk") for number in range(12)],
        # An older client says nothing.
        [(None, f"192.0.2.{number % 2}", f"desk-{number % 2}") for number in range(8)],
        [("a", "192.0.2.1", "desk"), (None, "192.0.2.2", "lab")] * 4,
    ],
)
@pytest.mark.parametrize("together", [False, True])
async def test_what_is_no_duplicate_raises_no_alarm(fleet, hellos, together):
    for number, (instance, address, hostname) in enumerate(hellos):
        fleet.connect(instance, at=number / 4, address=address, hostname=hostname)
        if not together:
            await fleet.flush()
    await fleet.flush()
    assert await fleet.events() == []
    assert await fleet.attention(minutes(5)) == []
    assert fleet.counted == 0


async def test_a_batch_that_is_written_again_finds_nothing_new(fleet):
    """The first commit may have been made although its outcome was not known."""
    await fleet.connects("a", at=0)
    for number in range(3):
        fleet.connect(f"start {number}", at=1 + number)
    written = fleet.engine.write

    async def unknown(unit):
        await written(unit)
        raise OutcomeUnknown("the connection broke")

    fleet.engine.write = unknown
    assert not await fleet.nodes["x"].flush()
    fleet.engine.write = written
    await fleet.flush()
    await fleet.connects("start 2", at=5)
    assert await fleet.events() == []


async def test_a_hello_that_is_written_late_is_no_return(fleet):
    if not fleet.engine.shared:
        pytest.skip("one node writes in order")
    fleet.connect("a", at=0, node="x")
    await fleet.connects("b", at=1, node="y")
    for number in range(3):
        await fleet.connects("a", at=2 + number, node="x", reading=1)
        await fleet.connects("b", at=2.5 + number, node="y")
    assert await fleet.events() == []


async def test_a_hello_that_changes_nothing_writes_nothing(fleet):
    for number, instance in enumerate(("a", "a", None)):
        await fleet.connects(instance, at=number)
    sql = "SELECT seenon FROM ice_instances"
    assert await fleet.engine.fetch(sql) == [(to_text(minutes(0)),)]
    await fleet.connects("a", at=3, hostname="lent")
    assert await fleet.engine.fetch(sql) == [(to_text(minutes(3)),)]


async def test_a_damaged_row_does_not_stop_presence(fleet):
    await fleet.connects("a", at=0)
    sql = "UPDATE ice_instances SET superseded = 'x'"
    await fleet.engine.write(lambda transaction: transaction.run(sql))
    await fleet.alternate("baba", start=1)
    assert len(await fleet.events()) == 1
