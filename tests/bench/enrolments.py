"""Measures many machines that enrol at once: at one gateway on SQLite, and at two nodes on PostgreSQL.

    python -m tests.bench.enrolments [--machines 2000]

Every machine has a key pair, a connection and a proof of its own, made before. On a machine of two cores, which
servers, PostgreSQL and machines share. All machines have to get an ICE, and no two the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.bench.fleet import copied
from tests.bench.phases import Bench, Figures
from tests.bench.systems import free_port, gateway
from tests.support.harness import API
from tests.support.ice import Nomad
from tests.support.machine import CI_CD, ENROLMENTS, Machine
from tests.support.node import Node, run_command, running
from tests.support.postgres import postgres

DURABLE = ("fsync=on", "full_page_writes=on", "autovacuum=on")
_AT_ONCE = 500
"""Connections that are being opened at once: a listener's queue is bounded, and a lost SYN waits for a second."""
_PATIENCE = 300.0


def _rss(node: Node) -> float:
    """MiB of memory."""
    pages = Path(f"/proc/{node.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu(node: Node) -> float:
    """Seconds of both kinds."""
    fields = Path(f"/proc/{node.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def _request(machine: Machine) -> bytes:
    """The bytes of a machine's request."""
    body = json.dumps({"hostname": machine.hostname, "platform": "bench"})
    fields = {
        **machine.headers("POST", ENROLMENTS),
        "Host": machine.url.removeprefix("http://"),
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {ENROLMENTS} HTTP/1.1\r\n{head}\r\n{body}".encode()


async def _enrol(
    address: tuple[str, int], data: bytes, turns: asyncio.Semaphore
) -> tuple[float, int, str]:
    """When the answer was there, its status, and the ICE's name or the code of the refusal."""
    async with turns:
        reader, writer = await asyncio.open_connection(*address)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    told = json.loads(body)
    return time.monotonic(), int(head.split()[1]), told.get("ice_name") or told["code"]


@dataclass(frozen=True)
class Storm:
    """What machines met that enrolled at once."""

    seconds: float
    times: tuple[float, ...]
    """When each had its answer."""
    outcomes: Counter[tuple[int, str]]
    """Statuses, with the codes of refusals."""


async def storm(urls: Sequence[str], token: str, count: int, public: str) -> Storm:
    """Have `count` machines enrol at the gateways of `urls` in turn; `token` is that of an admin.

    Raises RuntimeError unless every machine gets an ICE of its own.
    """
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
        body = {**CI_CD, "max_uses": count}
        async with session.post(f"{urls[0]}{API}/enrolment-keys", json=body) as answer:
            made = await answer.json()
        secret = made["secret"]
        machines = [
            Machine(session, urls[number % len(urls)], secret, f"pc-{number:05}", public=public)
            for number in range(count)
        ]
        requests = [(_address(machine.url), _request(machine)) for machine in machines]
        turns = asyncio.Semaphore(_AT_ONCE)
        began = time.monotonic()
        async with asyncio.timeout(_PATIENCE):
            answers = await asyncio.gather(*(_enrol(*request, turns) for request in requests))
        took = time.monotonic() - began
        url = f"{urls[0]}{API}/enrolment-keys/{made['enrolment_key']['id']}"
        async with session.get(url) as answer:
            uses = (await answer.json())["uses"]
    names = {told for _, status, told in answers if status == 201}
    outcomes = Counter((status, "" if status == 201 else told) for _, status, told in answers)
    if len(names) != count or uses != count:
        raise RuntimeError(f"not every machine got an ICE of its own: {outcomes}, {uses} uses")
    return Storm(took, tuple(sorted(at - began for at, _, _ in answers)), outcomes)


def enrolled(bench: Bench) -> Figures:
    """Machines that enrol at once at a gateway on a core of its own, each durable before its answer."""
    folder = copied(bench.fleet.folder, bench.folder / "copy")
    with gateway(folder, free_port(), bench.log) as server:
        count = bench.fleet.size
        found = asyncio.run(storm([server.url], bench.fleet.api_token, count, server.url))
    return {"enrolments_per_s": count / found.seconds}


async def _measure(nodes: list[Node], token: str, count: int) -> None:
    before = [(cpu(node), _rss(node)) for node in nodes]
    found = await storm([node.url for node in nodes], token, count, Nomad.PUBLIC)
    after = [(cpu(node), _rss(node)) for node in nodes]
    used = sum(now[0] - then[0] for now, then in zip(after, before, strict=True))
    rss = ", ".join(
        f"{then[1]:.0f} -> {now[1]:.0f}" for now, then in zip(after, before, strict=True)
    )
    print(
        f"{count} machines: {found.seconds:.2f} s ({count / found.seconds:.0f}/s), p50 {found.times[count // 2]:.2f} s,"
        f" p99 {found.times[count * 99 // 100]:.2f} s; CPU {used:.2f} s ({used / count * 1000:.2f} ms each);"
        f" RSS {rss} MiB; {dict(found.outcomes)}",
        flush=True,
    )


@contextlib.asynccontextmanager
async def _nodes(folder: Path, database: str, count: int) -> AsyncIterator[tuple[list[Node], str]]:
    await run_command(folder, database, "users", "add", "root", "--role", "admin", "--no-password")
    create = ("api-tokens", "create", "--user", "root", "--name", "bench", "--accounts")
    token = await run_command(folder, database, *create)
    nodes = [
        Node(folder, f"node-{number}", database, Nomad.PUBLIC, SERVER__INSECURE="true")
        for number in range(count)
    ]
    async with running(nodes):
        yield nodes, token


async def measure(count: int) -> None:
    """Both variants."""
    with tempfile.TemporaryDirectory(prefix="ice-enrolments-") as name:
        folder = Path(name)
        async with _nodes(folder, f"sqlite:///{folder}/ice.db", 1) as (nodes, token):
            print("one gateway on SQLite: ", end="", flush=True)
            await _measure(nodes, token, count)
    with (
        tempfile.TemporaryDirectory(prefix="ice-enrolments-") as name,
        postgres(*DURABLE) as server,
    ):
        async with _nodes(Path(name), server.database(), 2) as (nodes, token):
            print("two nodes on PostgreSQL: ", end="", flush=True)
            await _measure(nodes, token, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--machines", type=int, default=2000)
    asyncio.run(measure(parser.parse_args().machines))


if __name__ == "__main__":
    sys.exit(main())
