"""Measures what an ICE that floods its log costs the others: their operations and admissions, with it and without.

    python -m tests.bench.operation_logs [--rounds 4] [--seconds 5]

One gateway on SQLite. In every second round an ICE, which has a process of its own, sends a thousand frames of 64 KiB
a second, or as many as the gateway reads. Meanwhile another ICE works on short operations, each requested when the one
before has finished, and a third one connects anew after each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from websockets.frames import Frame, Opcode

from client.protocol import MAX_LOG_BYTES
from tests.support.harness import API
from tests.support.ice import Connection, Ice
from tests.support.node import Node, api_token, running
from tests.support.work import accept

_FRAMES = 1000
"""Frames a second of the flood, which the gateway allows in the long run."""


async def _flood(url: str, token: str, pipe: Any) -> None:
    """Connect, take the one operation, and log as fast as allowed until the pipe says stop."""
    connection = await Ice(url, token).connect()
    connection.hello(version="1")
    connection.patience = None
    pipe.send("here")
    while True:
        operation = (await connection.message())["params"]["id"]
        accept(connection, operation)
        line = "".join(f"{number:07}\n" for number in range(MAX_LOG_BYTES // 8))
        params = {"id": operation, "text": line}
        message = {"jsonrpc": "2.0", "method": "operation.log", "params": params}
        frame = Frame(Opcode.TEXT, json.dumps(message).encode()).serialize(mask=True)
        sent, began = 0, time.monotonic()
        while not pipe.poll():
            connection.writer.write(frame)
            await connection.writer.drain()
            sent += 1
            await asyncio.sleep(max(0.0, began + sent / _FRAMES - time.monotonic()))
        pipe.recv()
        pipe.send(sent / (time.monotonic() - began))
        params = {"id": operation, "outcome": "succeeded", "result": None}
        answer = await connection.request("operation.finish", **params)
        pipe.send(answer)


def _flooder(url: str, token: str, pipe: Any) -> None:
    asyncio.run(_flood(url, token, pipe))


async def _work(connection: Connection) -> None:
    while True:
        message = await connection.message()
        if message.get("method") == "operation.run":
            operation = message["id"]
            accept(connection, operation)
            params = {"id": operation, "outcome": "succeeded", "result": None}
            request = {"jsonrpc": "2.0", "method": "operation.finish", "id": 1, "params": params}
            connection.send(request)


class Bench:
    """The gateway and its ICEs."""

    def __init__(self, session: aiohttp.ClientSession, node: Node) -> None:
        self._session = session
        self._node = node

    async def post(self, path: str, body: Any) -> Any:
        async with self._session.post(f"{self._node.url}{API}{path}", json=body) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json()

    async def provision(self, name: str) -> str:
        body = {"ice_name": name, "ice_type": "ci-cd"}
        return (await self.post("/ices", body))["token"]

    async def round(self, comes: Ice, seconds: float) -> tuple[list[float], list[float]]:
        """Seconds of each operation and of each admission."""
        operations, admissions = [], []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            path = "/ices/works/operations?wait=60"
            done = await self.post(path, {"kind": "remote-execute"})
            assert done["state"] == "succeeded", done
            operations.append(time.monotonic() - began)
            began = time.monotonic()
            connection = await comes.connect()
            admissions.append(time.monotonic() - began)
            await connection.close()
        return operations, admissions


def _said(times: list[float]) -> str:
    cuts = statistics.quantiles(times, n=100)
    return f"p50 {cuts[49] * 1000:5.1f} ms, p95 {cuts[94] * 1000:5.1f} ms ({len(times)})"


async def measure(rounds: int, seconds: float) -> None:
    """Alternate rounds without and with the flood."""
    with tempfile.TemporaryDirectory(prefix="ice-logs-") as name:
        folder = Path(name)
        database = f"sqlite:///{folder}/ice.db"
        token = await api_token(folder, database)
        node = Node(folder, "node-a", database, "")
        headers = {"Authorization": f"Bearer {token}"}
        async with running([node]), aiohttp.ClientSession(headers=headers) as session:
            bench = Bench(session, node)
            works = await Ice(node.url, await bench.provision("works")).connect()
            works.patience = None
            working = asyncio.create_task(_work(works))
            comes = Ice(node.url, await bench.provision("comes"))
            pipe, theirs = multiprocessing.Pipe()
            flood = await bench.provision("floods")
            process = multiprocessing.get_context("spawn").Process(
                target=_flooder, args=(node.url, flood, theirs), daemon=True
            )
            process.start()
            await asyncio.to_thread(pipe.recv)
            for number in range(rounds):
                floods = bool(number % 2)
                if floods:
                    await bench.post("/ices/floods/operations", {"kind": "remote-execute"})
                    await asyncio.sleep(1)
                operations, admissions = await bench.round(comes, seconds)
                rate = ""
                if floods:
                    pipe.send("stop")
                    rate = f", {await asyncio.to_thread(pipe.recv):.0f} frames/s"
                    await asyncio.to_thread(pipe.recv)
                print(
                    f"{'with' if floods else 'without'} the flood{rate}:"
                    f" operations {_said(operations)}; admissions {_said(admissions)}",
                    flush=True,
                )
            working.cancel()
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    asyncio.run(measure(options.rounds, options.seconds))


if __name__ == "__main__":
    main()
