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
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

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


async def _measure(nodes: list[Node], token: str, count: int) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        body = {**CI_CD, "max_uses": count}
        async with session.post(f"{nodes[0].url}{API}/enrolment-keys", json=body) as answer:
            made = await answer.json()
        machines = [
            Machine(
                session,
                nodes[number % len(nodes)].url,
                made["secret"],
                f"pc-{number:05}",
                public=Nomad.PUBLIC,
            )
            for number in range(count)
        ]
        requests = [_request(machine) for machine in machines]
        before = [(cpu(node), _rss(node)) for node in nodes]
        turns = asyncio.Semaphore(_AT_ONCE)
        began = time.monotonic()
        async with asyncio.timeout(_PATIENCE):
            answers = await asyncio.gather(
                *(
                    _enrol(nodes[number % len(nodes)].address, data, turns)
                    for number, data in enumerate(requests)
                )
            )
        took = time.monotonic() - began
        after = [(cpu(node), _rss(node)) for node in nodes]
        url = f"{nodes[0].url}{API}/enrolment-keys/{made['enrolment_key']['id']}"
        async with session.get(url) as answer:
            uses = (await answer.json())["uses"]
    times = sorted(at - began for at, _, _ in answers)
    statuses = Counter((status, "" if status == 201 else told) for _, status, told in answers)
    names = {told for _, status, told in answers if status == 201}
    cpu = sum(now[0] - then[0] for now, then in zip(after, before, strict=True))
    rss = ", ".join(
        f"{then[1]:.0f} -> {now[1]:.0f}" for now, then in zip(after, before, strict=True)
    )
    print(
        f"{count} machines: {took:.2f} s ({count / took:.0f}/s), p50 {times[count // 2]:.2f} s,"
        f" p99 {times[count * 99 // 100]:.2f} s; CPU {cpu:.2f} s ({cpu / count * 1000:.2f} ms each);"
        f" RSS {rss} MiB; {dict(statuses)}; {len(names)} names, {uses} uses",
        flush=True,
    )
    if len(names) != count or uses != count:
        raise SystemExit("not every machine got an ICE of its own")


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
