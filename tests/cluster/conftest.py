from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.store import proofs
from gateway.store.bell import Bell
from tests.support.harness import Harness, harness
from tests.support.ice import Nomad


@dataclass
class Cluster:
    """Nodes of one database, in one process."""

    a: Harness
    b: Harness
    c: Harness

    async def ice(self, name: str = "lab-1") -> Nomad:
        """Provisioned by A."""
        provisioned = await self.a.provision(name)
        ice = Nomad(self.a.url, provisioned.token)
        self.a._ices.append(ice)
        return ice


@dataclass
class Place:
    """A database that several gateways may serve, and the settings of each but for its name."""

    folder: Path
    options: dict[str, object]
    pipes: list[tuple[int, int]]
    """On an SQLite file one for each gateway that may come."""

    def join(self, name: str, **more: Any) -> AbstractAsyncContextManager[Harness]:
        """One more gateway."""
        bell = None
        if self.pipes:
            (mine, _), *_ = self.pipes
            self.pipes.append(self.pipes.pop(0))
            bell = Bell(mine, [end for other, end in self.pipes if other != mine])
        return harness(self.folder, **self.options | more, node__name=name, bell=bell)


@pytest.fixture(params=["postgresql", "sqlite"])
def place(request, tmp_path, monkeypatch) -> Iterator[Place]:
    """A server, or a file as the parent of several workers prepares it."""
    key_file = str(tmp_path / "keys.json")
    monkeypatch.setenv("ICE_GATEWAY_TOKENS__KEY_FILE", key_file)  # for commands
    options = {
        "tokens__key_file": key_file,
        "server__public_url": [Nomad.PUBLIC],
        "server__insecure": True,
        "node__lease": "2s",
    }
    if request.param == "postgresql":
        options["database__url"] = request.getfixturevalue("database_url")
        yield Place(tmp_path, options, [])
        return
    path = tmp_path / "ice.db"
    options["database__url"] = f"sqlite:///{path}"
    proofs.make(path)
    pipes = [os.pipe() for _ in range(6)]
    yield Place(tmp_path, options, list(pipes))
    for end in itertools.chain(*pipes):
        os.close(end)


@pytest.fixture
async def cluster(place):
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(place.join(f"node-{name}")) for name in "abc"]
        yield Cluster(*nodes)
        await nodes[0].close()  # or the other nodes would wait for its ICEs
