"""An ICE of the generator understands whatever way the bytes are cut, and is admitted by a real gateway."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys

import pytest

from client.backoff import Stopped
from tests.scale.agent import (
    IDLE,
    OPEN,
    OPENING,
    PUBLIC,
    Admitted,
    Agent,
    Rejected,
    frame,
    leaving,
    name_of,
)
from tests.scale.generator import thumbprint
from tests.support.harness import harness

_101 = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


def of_server(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    return (
        bytes([128 | opcode])
        + (bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2))
        + payload
    )


def opening() -> Agent:
    agent = Agent(7)
    agent.token = "token"
    agent.state = OPENING
    return agent


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_frames_may_be_cut_anywhere(size):
    agent = opening()
    stream = _101 + of_server(1, b"w" * 300) + of_server(9, b"ping") + of_server(8, b"\x0f\xa0{}")
    sent, outcomes = b"", []
    for at in range(0, len(stream), size):
        answer, outcome = agent.received(stream[at : at + size], 1.0)
        sent += answer
        outcomes += [outcome] if outcome else []
    assert outcomes == [Admitted()]
    assert agent.state == OPEN
    assert sent == agent.hello() + frame(10, b"ping") + frame(8, b"\x0f\xa0")
    assert (agent.close_code, agent.close_reason, agent.left) == (4000, "{}", 1.0)


def test_a_refusal_is_obeyed():
    agent = opening()
    problem = json.dumps({"code": "draining", "retry": True}).encode()
    answer = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\n\r\n" + problem
    _, outcome = agent.received(answer, 1.0)
    assert outcome == Rejected("draining", 7.0, retry=True)
    assert agent.refused(outcome) >= 7
    final = Rejected("deregistered", None, retry=False)
    assert isinstance(agent.refused(final), Stopped)


def test_a_large_frame_is_refused():
    agent = opening()
    with pytest.raises(ValueError, match="64 KiB"):
        agent.received(_101 + b"\x81\x7f" + (1 << 20).to_bytes(8), 1.0)


@pytest.mark.parametrize("size", [0, 125, 126, 60_000])
def test_a_frame_is_masked_and_says_its_length(size):
    made = frame(1, b"x" * size)
    assert made[1] & 128
    assert len(made) == size + (6 if size < 126 else 8)


async def test_a_generator_brings_its_ices_to_a_gateway(tmp_path):
    """They register, one is dropped for good, one goes by itself, and all others come back from a reset."""
    async with harness(tmp_path, server__public_url=[PUBLIC]) as running:
        given = {
            "first": 0, "count": 4, "sources": ["127.0.1.1"], "thumbprints": str(tmp_path / "prints"),
            "ports": [int(running.url.rpartition(":")[2])],
        }  # fmt: skip
        tokens = [(await running.provision(name_of(number), "ci-cd")).token for number in range(4)]
        (tmp_path / "tokens").write_text("\n".join(tokens))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.scale.generator", json.dumps(given)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:

            def tell(do, **more):
                process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")

            async def said():
                async with asyncio.timeout(10):
                    return json.loads(await process.stdout.readline())

            async def connected(count):
                admitted = 0
                while True:
                    tell("report")
                    found = await said()
                    admitted += found["admitted"]
                    if found["connected"] == count and admitted:
                        return found
                    await asyncio.sleep(0.02)

            assert await said() == {"done": "keys"}
            tell("tokens", file=str(tmp_path / "tokens"))
            assert await said() == {"done": "tokens"}
            tell("connect", at_once=2)
            await connected(4)
            answer = await running.admin.get(f"/ices/{name_of(3)}")
            assert (answer.json["status"], answer.json["generation"]) == ("registered", 1)
            await running.act(name_of(3), "deregister")
            ended = await said()
            assert (ended["ended"], ended["code"]) == (3, 4101)
            tell("break")
            found = await connected(3)
            assert found["stopped"] == 1
            tell("end")
            async with asyncio.timeout(10):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                await process.wait()


def test_the_thumbprint_is_that_of_the_key():
    agent = Agent(0)
    assert agent.state == IDLE
    assert thumbprint(agent) != thumbprint(Agent(0))
    assert len(thumbprint(agent)) == 43
    assert leaving() == frame(8, b"\x03\xe8")
