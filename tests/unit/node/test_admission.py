"""The screening of many handshakes that arrive at once; a whole admission is tested in `tests/gateway`."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.replay import Nonces
from gateway.core.times import utc_now
from gateway.node.admission import Admission
from gateway.node.verdict import Handshake


class Keys:
    """Opens no token, and remembers which it was to open, and when somebody else had a turn."""

    def __init__(self):
        self.asked = []
        self.broken = None

    def open(self, token):
        if not self.asked or self.asked[-1] == "somebody else":
            asyncio.get_running_loop().call_soon(self.asked.append, "somebody else")
        self.asked.append(token.reveal())
        if self.asked[-1] == self.broken:
            raise StopIteration  # which a future does not take


class Stage:
    """An admission that meets nothing but tokens."""

    def __init__(self, max_batch):
        self.keys = Keys()
        self._admission = Admission(
            **dict.fromkeys(("engine", "hub", "loader", "follower", "restore_hold", "lease")),
            keys=self.keys,
            clock=utc_now,
            nonces=Nonces(lambda: [bytes(32)]),
            lease_time=lambda: 0.0,
            public_urls=(),
            max_batch=max_batch,
            looked_up=lambda _: None,
        )

    async def arrive(self, *tokens):
        """Begin the admissions of these tokens in one turn of the loop."""
        begun = []
        for token in tokens:
            handshake = Handshake((f"DPoP {token}",), (), "192.0.2.1", ())
            begun.append(asyncio.create_task(self._admission.admit(handshake, lambda _: None)))
        await asyncio.sleep(0)
        return begun


async def test_others_have_their_turn_while_a_storm_is_screened():
    stage = Stage(max_batch=2)
    for refused in await stage.arrive("a", "b", "c", "d", "e"):
        assert (await refused).problem.code == "token-invalid"
    other = "somebody else"
    assert stage.keys.asked == ["a", "b", other, "c", "d", other, "e", other], (
        "two at a time were to be screened"
    )


async def test_a_step_that_breaks_holds_up_nobody_else():
    faults = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: faults.append(what))
    stage = Stage(max_batch=1)
    stage.keys.broken = "a"
    first, second = await stage.arrive("a", "b")
    assert (await second).problem.code == "token-invalid"
    assert [type(fault["exception"]) for fault in faults] == [TypeError]
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_whoever_has_gone_is_not_verified():
    """In a storm those who gave up do not hold up those who came again."""
    stage = Stage(max_batch=8)
    gone, here = await stage.arrive("gone", "here")
    gone.cancel()
    await here
    assert gone.cancelled()
    assert [token for token in stage.keys.asked if token != "somebody else"] == ["here"]
