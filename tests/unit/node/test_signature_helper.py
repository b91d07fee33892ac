"""The process that checks signatures: it may die, hang, lie or be missing, and only takes work off the gateway."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.core.dpop import read
from gateway.core.signatures import Signature
from gateway.node.signature_helper import HelperPace, SignatureHelper, command
from gateway.runtime import signature_process
from tests.support.ice import Key, until

SIGNED = [read(key.proof("http://x", "token")).signature for key in (Key(), Key.ed25519())]
ES256, ED25519 = SIGNED
PACE = HelperPace(start=2, few=2)
# Reads a request, whose size follows the batch's number, and gives the number back.
FAKE = """
import os, sys
def asked():
    head = sys.stdin.buffer.read(12)
    sys.stdin.buffer.read(int.from_bytes(head[8:]))
    return head[:8]
def say(answer):
    os.write(1, answer)
say(asked())
number = asked()
"""

HANG = "asked(); asked()"


def fake(then: str):
    """A process that is ready, then gets one batch and does this."""
    return lambda: [sys.executable, "-I", "-S", "-c", FAKE + then]


class Helped:
    """A helper that has been started."""

    def __init__(self, pace=PACE, **options):
        self.helper = SignatureHelper(pace, **{"cores": lambda: 2, **options})

    async def __aenter__(self):
        assert self.helper.check(SIGNED) is None, "the process cannot be there yet"
        await until(lambda: self.helper._link is not None)
        return self.helper

    async def __aexit__(self, *_):
        await self.helper.close()
        assert self.helper._running is None


@pytest.fixture
def logged():
    with capture_logs() as lines:
        yield lines


def children():
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def environment_of(pid):
    return Path(f"/proc/{pid}/environ").read_text()


async def test_the_process_tells_valid_signatures_from_others(monkeypatch):
    monkeypatch.setenv("ICE_GATEWAY_DATABASE__URL", "secret")
    off_curve = ES256._replace(key=bytes(64))
    others = [
        ES256._replace(signed=ES256.signed + b"x"),
        ES256._replace(signature=ES256.signature[:-1]),
        ED25519._replace(signature=ES256.signature),
        off_curve,
    ]
    before = children()
    async with Helped() as helper:
        [pid] = children() - before
        assert "ICE_GATEWAY_" not in environment_of(pid)
        first, second = helper.check(SIGNED), helper.check([*others, *SIGNED])
        assert helper.check(SIGNED) is None, "two batches at once are enough"
        assert list(await first) == [1, 1]
        assert list(await second) == [0, 0, 0, 0, 1, 1]
    assert children() == before


def test_the_process_answers_until_its_gateway_is_gone():
    source = io.BytesIO(
        signature_process.request(7, SIGNED)
        + signature_process.request(8, [Signature(b"", b"", b"")])
    )
    sink = io.BytesIO()
    signature_process.serve(source, sink)
    assert sink.getvalue() == bytes([*bytes(7), 7, 1, 1, *bytes(7), 8, 0])


async def test_few_signatures_start_nothing_and_ask_nobody():
    helper = SignatureHelper(PACE, cores=lambda: 2, command=pytest.fail)
    assert helper.check(SIGNED[:1]) is None
    async with Helped() as helper:
        assert helper.check(SIGNED[:1]) is None


async def test_one_core_needs_no_process():
    helper = SignatureHelper(PACE, cores=lambda: 1, command=pytest.fail)
    assert helper.check(SIGNED) is None
    await helper.close()


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("", "it ended"),
        ("say(number + b'\\1')", "it ended"),
        ("say(bytes(8) + b'\\1\\1')", "it answered another question"),
        (HANG, "it did not answer in time"),
    ],
    ids=["dies", "dies within an answer", "lies", "hangs"],
)
async def test_a_process_that_fails_leaves_the_work_to_the_gateway(does, reason, logged):
    pace = HelperPace(start=2, few=2, patience=0.2 if does == HANG else 5.0)
    async with Helped(pace, command=fake(does)) as helper:
        answers = [helper.check(SIGNED), helper.check(SIGNED)]
        assert [await answer for answer in answers] == [b"", b""]
        await until(lambda: helper._running is None)
        assert [line["reason"] for line in logged] == [reason]
        assert helper.check(SIGNED) is None
        assert helper._running is None, "it was to be tried again only after a pause"


async def test_a_killed_process_is_replaced_after_the_pause():
    before = children()
    async with Helped(HelperPace(start=2, few=2, pause=0.0)) as helper:
        [pid] = children() - before
        os.kill(pid, signal.SIGKILL)
        await until(lambda: helper._running is None)
        assert helper.check(SIGNED) is None
        await until(lambda: helper._link is not None)
        assert list(await helper.check(SIGNED)) == [1, 1]


async def test_a_program_that_is_missing_is_no_fault_of_a_handshake(logged):
    helper = SignatureHelper(PACE, cores=lambda: 2, command=lambda: ["/nowhere"])
    assert helper.check(SIGNED) is None
    await until(lambda: helper._running is None)
    assert [line["reason"] for line in logged] == ["No such file or directory"]
    assert helper.check(SIGNED) is None
    await helper.close()


async def test_a_process_without_work_ends():
    before = children()
    async with Helped(HelperPace(start=2, few=2, idle=0.2), command=fake("asked()")) as helper:
        await until(lambda: helper._running is None)
        assert children() == before


async def test_a_stopping_gateway_does_not_wait_for_it():
    before = children()
    async with Helped(command=fake("asked()")) as helper:
        answer = helper.check(SIGNED)
        await helper.close()
        assert await answer == b""
        assert children() == before
        assert helper.check(SIGNED) is None
        assert helper._running is None


def test_it_finds_the_gateway_where_the_gateway_found_itself():
    assert command()[-len(sys.path) :] == sys.path
