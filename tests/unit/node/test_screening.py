"""The screening of many handshakes that arrive at once; a whole admission is tested in `tests/gateway`."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.ice import IceType
from gateway.core.secret import Secret
from gateway.core.times import utc_now
from gateway.core.tokens import OpenedToken
from gateway.node.admission import Admission
from gateway.node.screening import Screening
from gateway.node.signature_helper import SignatureHelper
from gateway.node.verdict import Handshake, Refused
from tests.support.ice import Key


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
            screening=Screening(
                keys=self.keys,
                shared=False,
                clock=utc_now,
                lease_time=lambda: 0.0,
                public_urls=(),
                signatures=SignatureHelper(cores=lambda: 1),
                max_batch=max_batch,
            ),
            clock=utc_now,
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


class Helper:
    """Takes batches of two or more, and answers when it is told."""

    def __init__(self):
        self.asked = []

    def check(self, batch):
        if len(batch) < 2:
            return None
        answer = asyncio.get_running_loop().create_future()
        self.asked.append((batch, answer))
        return answer


class Trusting:
    """Opens each token as that of the ICE of this name."""

    def open(self, token):
        return OpenedToken(token.reveal(), IceType.NORMAL, 1, "")


URL = "http://gw.example"


class Screen:
    """A screening with such a helper."""

    def __init__(self):
        self.helper = Helper()
        self.order = []
        self._screening = Screening(
            keys=Trusting(),
            shared=False,
            clock=utc_now,
            lease_time=lambda: 0.0,
            public_urls=(URL,),
            signatures=self.helper,
        )

    async def arrive(self, *handshakes):
        """Begin to screen handshakes of a name and a proof that come at once."""
        begun = [asyncio.create_task(self._screen(*handshake)) for handshake in handshakes]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return begun

    async def prove(self, *requests):
        """Begin to check proofs that come at once, each with a secret, a method and a suffix."""
        begun = [
            asyncio.create_task(
                self._screening.prove(
                    Handshake((), (proof,), "192.0.2.1", ()), Secret(secret), method, suffix
                )
            )
            for secret, proof, method, suffix in requests
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return begun

    async def _screen(self, name, proof):
        handshake = Handshake((f"DPoP {name}",), (proof,), "192.0.2.1", ())
        found = await self._screening.screen(handshake)
        self.order.append(name)
        return found


def proof(name, **claims):
    return Key().proof(f"{URL}/ice/v1", name, **claims)


def forged(name):
    """A proof whose signature is another one's."""
    return ".".join((*proof(name).split(".")[:2], proof(name).split(".")[2]))


async def detail(task):
    found = await task
    return (
        found.problem.detail.split(".")[0] if isinstance(found, Refused) else found.token.ice_name
    )


async def test_what_the_helper_does_not_call_valid_is_checked_here():
    screen = Screen()
    names = ["a", "b", "c", "d"]
    begun = await screen.arrive(
        *((name, proof(name)) for name in names), ("e", forged("e")), ("f", forged("f"))
    )
    [(batch, answer)] = screen.helper.asked
    assert len(batch) == 6
    answer.set_result(bytes([1, 0, 2, 1, 0]))  # and nothing of the last
    assert [await detail(one) for one in begun] == [*names, *["The signature does not hold"] * 2]


async def test_a_valid_signature_is_not_all_that_counts():
    """The other checks are made here, after the answer, on the same proof."""
    screen = Screen()
    old = proof("c", iat=1.0)
    begun = await screen.arrive(
        ("a", proof("b")),
        ("b", proof("b", htm="POST")),
        ("c", old),
        ("d", twice := proof("d")),
        ("d", twice),
    )
    screen.helper.asked[0][1].set_result(bytes([1] * 5))
    assert [(await one).problem.code for one in begun[:3]] == [
        "proof-invalid",
        "proof-invalid",
        "use-dpop-nonce",
    ]
    assert await detail(begun[3]) == "d"
    assert await detail(begun[4]) == "The proof was used before"


async def test_the_batches_are_finished_in_the_order_of_their_arrival():
    """An ICE's later handshake must not be overtaken by its earlier one."""
    screen = Screen()
    first = await screen.arrive(("a", proof("a")), ("b", proof("b")))
    second = await screen.arrive(("a", proof("a")), ("c", proof("c")))
    alone = await screen.arrive(("a", proof("a")))
    answers = [answer for _, answer in screen.helper.asked]
    assert len(answers) == 2, "one alone was to be checked here"
    answers[1].set_result(bytes([1, 1]))
    for _ in range(5):
        await asyncio.sleep(0)
    assert screen.order == []
    answers[0].set_result(bytes([1, 1]))
    await asyncio.gather(*first, *second, *alone)
    assert screen.order == ["a", "b", "a", "c", "a"]
    assert await detail((await screen.arrive(("d", proof("d"))))[0]) == "d"


async def test_one_who_goes_while_the_helper_works_holds_up_nobody():
    screen = Screen()
    gone, here = await screen.arrive(("a", proof("a")), ("b", proof("b")))
    gone.cancel()
    screen.helper.asked[0][1].set_result(bytes([1, 1]))
    assert await detail(here) == "b"
    assert gone.cancelled() or gone.cancelling()


async def test_the_proofs_of_other_requests_are_checked_with_those_of_handshakes():
    screen = Screen()
    key, where = Key(), f"{URL}/ice/v1/enrolments"
    good = key.proof(where, "secret", htm="POST")
    begun = await screen.prove(
        ("secret", good, "POST", "/enrolments"),
        ("other", key.proof(where, "secret", htm="POST"), "POST", "/enrolments"),
        ("secret", key.proof(where, "secret", htm="POST"), "GET", "/enrolments"),
        ("secret", key.proof(where, "secret", htm="POST"), "POST", ""),
        ("secret", forged("a"), "POST", "/enrolments"),
        ("secret", good, "POST", "/enrolments"),
    )
    handshakes = await screen.arrive(("a", proof("a")), ("b", proof("b")))
    [(batch, answer), (_, later)] = screen.helper.asked
    assert len(batch) == 6
    answer.set_result(bytes([1, 1, 1, 1, 0, 1]))
    later.set_result(bytes([1, 1]))
    found = [await one for one in begun]
    assert found[0].thumbprint
    details = [one.problem.detail for one in found[1:]]
    expected = (
        "Ath is not",
        "Htm must be GET",
        "The proof was made for",
        "The signature",
        "The proof was used",
    )
    assert [text.startswith(start) for text, start in zip(details, expected, strict=True)] == [
        True
    ] * 5
    assert [await detail(one) for one in handshakes] == ["a", "b"]
