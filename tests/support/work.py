"""Operations in tests: asked for by the API, worked on by a scripted ICE."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from tests.support.harness import API, Answer, Api, Harness
from tests.support.ice import PATIENCE, Connection, Ice


async def connected(running: Harness, name: str = "lab-1", kind: str = "normal") -> Connection:
    """A new ICE that is here and has said hello."""
    return await greeted(await running.provision(name, kind))


async def greeted(ice: Ice, *running: str) -> Connection:
    """A connection of this ICE, which says that it works on `running`."""
    connection = await ice.connect()
    connection.hello(version="1", running=list(running))
    await connection.round_trip()
    return connection


async def ask(
    api: Api, name: str = "lab-1", kind: str = "execute", query: str = "", **body: Any
) -> Answer:
    """Request an operation."""
    return await api.post(f"/ices/{name}/operations{query}", {"kind": kind, **body})


async def asked(api: Api, name: str = "lab-1", kind: str = "execute", **body: Any) -> str:
    """Request an operation that must be accepted; its id."""
    answer = await ask(api, name, kind, **body)
    assert answer.status == 202, f"{kind} for {name} was to be accepted, got {answer}"
    return answer.json["id"]


async def show(api: Api, operation: str) -> Any:
    answer = await api.get(f"/operations/{operation}")
    assert answer.status == 200, f"operation {operation} was to be shown, got {answer}"
    return answer.json


async def in_state(running: Harness, operation: str, state: str) -> Any:
    """The operation once it has this state."""
    answer = await running.eventually(
        f"/operations/{operation}", lambda answer: answer.json["state"] == state
    )
    return answer.json


async def expect_run(connection: Connection) -> dict[str, Any]:
    """The parameters of the `operation.run` that has to come next."""
    message = await connection.message()
    assert message.get("method") == "operation.run", f"expected operation.run, got {message}"
    assert message["id"] == message["params"]["id"], f"the request's id is another: {message}"
    return message["params"]


def accept(connection: Connection, operation: str) -> None:
    connection.send({"jsonrpc": "2.0", "id": operation, "result": {"accepted": True}})


async def take(connection: Connection) -> str:
    """Receive and accept the next operation; its id."""
    run = await expect_run(connection)
    accept(connection, run["id"])
    return run["id"]


def progress(connection: Connection, operation: str, **news: Any) -> None:
    params = {"id": operation, **news}
    connection.send({"jsonrpc": "2.0", "method": "operation.progress", "params": params})


def log(connection: Connection, operation: str, text: str) -> None:
    params = {"id": operation, "text": text}
    connection.send({"jsonrpc": "2.0", "method": "operation.log", "params": params})


async def finish(
    connection: Connection, operation: str, outcome: str = "succeeded", **what: Any
) -> dict[str, Any]:
    """Finish an operation; the gateway's answer."""
    request = f"finish {operation}"
    params = {"id": operation, "outcome": outcome, **what}
    answer = await connection.request("operation.finish", request, **params)
    assert answer.get("id") == request, f"expected the answer to a finish, got {answer}"
    return answer


async def finished(connection: Connection, operation: str, *args: Any, **what: Any) -> None:
    """Finish an operation, which must be taken in."""
    answer = await finish(connection, operation, *args, **what)
    assert answer.get("result") == {}, f"the finish of {operation} was to be taken in, got {answer}"


async def refused(connection: Connection, operation: str, code: str, **what: Any) -> None:
    """Finish an operation, which must be refused."""
    answer = await finish(connection, operation, **what)
    got = answer.get("error", {}).get("data", {}).get("code")
    assert got == code, f"the finish of {operation} was to be refused as {code}, got {answer}"


class Reader:
    """Reads one operation's stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.place = ""
        """The id of the last event that has one."""

    async def event(self) -> Any:
        """The next event as (name, data); None at the end."""
        name = data = None
        async with asyncio.timeout(PATIENCE):
            async for line in self.response.content:
                text = line.decode().rstrip("\r\n")
                if text.startswith("event: "):
                    name = text[7:]
                elif text.startswith("data: "):
                    data = json.loads(text[6:])
                elif text.startswith("id: "):
                    self.place = text[4:]
                elif not text and name:
                    return name, data
        return None


@contextlib.asynccontextmanager
async def follow(api: Api, operation: str, **headers: str) -> AsyncIterator[Reader]:
    headers["Authorization"] = f"Bearer {api.token}"
    url = f"{api.base}{API}/operations/{operation}/stream"
    async with api.session.get(url, headers=headers) as response:
        assert response.status == 200, f"the stream was answered {response.status}"
        assert response.headers["Cache-Control"] == "no-store"
        yield Reader(response)


async def expect_cancel(connection: Connection, operation: str, reason: str = "requested") -> None:
    message = await connection.message()
    assert message.get("method") == "operation.cancel", f"expected operation.cancel, got {message}"
    assert message["params"] == {"id": operation, "reason": reason}


async def stored(running: Harness, operation: str, column: str, value: str) -> None:
    """Put what an older version took into the table."""

    async def unit(transaction: Any) -> None:
        sql = f"UPDATE ice_operations SET {column} = $1 WHERE id = $2"  # noqa: S608 - the test's own
        assert await transaction.run(sql, value, operation) == 1

    await running.gateway.engine.write(unit)


DEEP = "[" * 975 + "]" * 975
UNREADABLE = {
    "params": DEEP,
    "result": f'{{"a": {DEEP}}}',
    "error": "9" * 5000,
    "progress": f'{{"fraction": 0.5, "message": "half", "data": {DEEP[300:-300]}, "at": "2026-01-01T00:00:00Z"}}',
}
"""JSON that a version before the limits took, by column; common parsers fail at it."""
