"""Three nodes, their database, two reference clients and an admin, each at its place in a network that can fail."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp

from client.agent import IceClient
from client.environment import Environment, Waits
from client.operations import OperationFailed
from gateway.app import Tuning, run_gateway
from gateway.node.node import NodeLimits
from gateway.runtime.logs import configure
from gateway.runtime.setting_sources import load
from tests.support.ice import Nomad
from tests.support.network import Network, Place, enter, network
from tests.support.node import Node, api_token, running
from tests.support.postgres import SUPERUSER, Postgres
from tests.support.relay import relaying
from tests.torture import nodes, operations
from tests.torture.callers import EVERY, Callers

LEASE = 2.0
"""Seconds, the least that the gateway takes: a round has to outlast it."""
HANDSHAKE = 4.0
"""Seconds for which an ICE waits for its admission."""
DATABASE, ICES, CALLERS = "10.98.0.10", "10.98.0.20", "10.98.0.30"
NODES = {name: f"10.98.0.{number}" for number, name in enumerate(nodes.NAMES, 1)}
LABS = operations.NAMES
"""The reference clients."""
_GRACE = timedelta(seconds=2)
"""How long a finish may take after a hello: 30 s would make long rounds."""
_PATIENCE = 3.0
"""Seconds for which the admin waits for an answer: the gateway waits 2 s for confirmations."""


# --- the processes -------------------------------------------------------------------------------


def _let_older_sessions_be() -> None:
    from gateway.node.membership import Membership  # noqa: PLC0415 - in the process of a node alone

    def nothing(*_: Any) -> None:
        pass

    assert Membership._close_superseded  # or else nothing would be broken
    Membership._close_superseded = nothing  # type: ignore[method-assign]


def _name_nobody() -> None:
    from gateway.store.acknowledgements import Acknowledgements  # noqa: PLC0415

    late = Acknowledgements.late

    async def nobody(*given: Any) -> list[str]:
        await late(*given)
        return []

    Acknowledgements.late = nobody  # type: ignore[method-assign]


def _forget_keys() -> None:
    from gateway.services.operation_requests import OperationService  # noqa: PLC0415

    queue = OperationService.queue

    async def without_key(self: Any, actor: Any, ice: Any, new: Any) -> Any:
        return await queue(self, actor, ice, replace(new, idempotency_key=None))

    OperationService.queue = without_key  # type: ignore[method-assign]


MUTATIONS: dict[str, Callable[[], None]] = {
    **nodes.MUTATIONS,
    "let-older-sessions-be": _let_older_sessions_be,
    "name-nobody": _name_nobody,
    "forget-keys": _forget_keys,
}


def be_a_node(mutation: str, namespace: str) -> None:
    enter(namespace)
    configure("text", "error")
    MUTATIONS[mutation]()

    async def run() -> None:
        tuning = Tuning(node=NodeLimits(finish_grace=_GRACE))
        async with run_gateway(load(None, os.environ, {}), tuning=tuning) as gateway:
            print(f"ice-gateway serves {gateway.url} on {gateway.engine.name}", flush=True)
            await asyncio.Event().wait()

    asyncio.run(run())


class _Server(Postgres):
    """PostgreSQL at a place of its own."""

    def url(self, database: str, user: str = SUPERUSER) -> str:
        return f"postgresql://{user}@{DATABASE}:{self.port}/{database}"


@contextlib.contextmanager
def _database(place: Place) -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory(prefix="ice-network-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        home.chmod(0o755)
        server = _Server(home)
        server.make("listen_addresses='*'")
        with (server.data / "pg_hba.conf").open("a") as file:
            file.write("host all all 10.98.0.0/24 trust\n")
        place.run(server.start)
        try:
            yield server
        finally:
            server.stop("immediate")


# --- the cluster ---------------------------------------------------------------------------------


@dataclass
class Field(Callers):
    """The nodes, the admin, the network between them, and what the reference clients did."""

    network: Network = field(kw_only=True)
    keys: dict[str, str] = field(default_factory=dict)
    """What was requested under each operation's id."""
    truth: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in LABS})
    """What the handlers of each client noted, as in `operations`."""
    clients: dict[str, asyncio.Task[Any]] = field(default_factory=dict)

    async def request(self, number: int, chance: random.Random) -> None:
        """Request an operation, asking node after node with one key until one has accepted it."""
        key = f"operation {number}-{secrets.token_hex(4)}"
        params = {"seconds": chance.uniform(0, 0.3), "fails": chance.random() < 0.2}
        body = {"kind": "remote-execute", "params": params, "idempotency_key": key}
        path = f"/ices/{chance.choice(LABS)}/operations"
        order = chance.sample(list(self.nodes), len(self.nodes))
        while True:
            for node in order:
                status, told = await self.call(node, "POST", path, body)
                if status in (200, 202):
                    self.keys[told["id"]] = key
                    return
                if 400 <= status < 500:
                    raise AssertionError(f"{key} was refused: {status} {told}")
            await asyncio.sleep(EVERY)

    async def listed(self) -> dict[str, Any]:
        """All operations by their ids."""
        found: dict[str, Any] = {}
        query = "?limit=200"
        while True:
            page = await self.done(200, "GET", f"/operations{query}")
            found |= {item["id"]: item for item in page["items"]}
            if page["next"] is None:
                return found
            query = f"?limit=200&cursor={page['next']}"

    async def connected(self, name: str) -> str | None:
        """The session of an ICE, as a node that answers shows it."""
        shown = (await self.done(200, "GET", f"/ices/{name}"))["connection"]
        return None if shown is None else shown["session"]


@contextlib.asynccontextmanager
async def field_of(chance: random.Random, mutation: str) -> AsyncIterator[Field]:
    """Three nodes that serve, and two clients that are connected; this thread is then at the ICEs' place."""
    places = *((address,) for address in NODES.values()), (DATABASE,), (ICES, CALLERS)
    async with contextlib.AsyncExitStack() as stack:
        joined, (*theirs, base, ours) = stack.enter_context(network(chance, *places))
        enter(ours.path)
        server = stack.enter_context(_database(base))
        server.sql("CREATE DATABASE ice")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ice-network-")))
        relays = {name: stack.enter_context(relaying()) for name in LABS}
        public = ",".join((Nomad.PUBLIC, *(relay.url for relay in relays.values())))
        made = [
            Node(
                *(folder, name, server.url("ice"), public),
                program=("tests.torture.network", "--node", mutation, "--namespace", place.path),
                NODE__LEASE=f"{LEASE:.0f}s",
                SERVER__HOST=NODES[name],
                SERVER__INSECURE="true",
                ICE__HEARTBEAT="2s",
            )
            for name, place in zip(nodes.NAMES, theirs, strict=True)
        ]
        await stack.enter_async_context(running(made))
        token = await api_token(folder, server.url("ice"))
        connector = aiohttp.TCPConnector(local_addr=(CALLERS, 0))
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        callers = Field(made, server, session, token, _PATIENCE, network=joined)
        for name, relay in relays.items():
            relay.targets = [node.address for node in made]
            body = {"ice_name": name, "ice_type": "ci-cd"}
            given = (await callers.done(201, "POST", "/ices", body))["token"]
            await stack.enter_async_context(_client(relay.url, folder / name, name, given, callers))
        yield callers


@contextlib.asynccontextmanager
async def _client(
    url: str, folder: Path, name: str, token: str, callers: Field
) -> AsyncIterator[None]:
    """A reference client that notes what its handler begins and ends."""
    notes = callers.truth[name]

    async def execute(given: Any, _: Any) -> Any:
        notes.append(f"begin {given.id}")
        await asyncio.sleep(given.params["seconds"])
        notes.append(f"end {given.id}")
        if given.params["fails"]:
            raise OperationFailed("broken", given.id)
        return {"did": given.id}

    async def soon(seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.5))

    client = IceClient(
        url,
        state_dir=folder,
        token=token,
        handlers={"remote-execute": execute},
        observe=lambda _: None,
        environment=Environment(sleep=soon, waits=Waits(handshake=HANDSHAKE)),
    )
    async with client:
        callers.clients[name] = asyncio.create_task(client.wait())
        yield
    callers.clients[name].cancel()
