from __future__ import annotations

import contextlib
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.app import Tuning
from gateway.node.node import NodeLimits
from tests.support.harness import Harness, harness
from tests.support.ice import Nomad

LEASE = "20s"
SHORT_LEASE = "2s"


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
    """A database on a server, and the settings of each gateway on it but for its name."""

    folder: Path
    options: dict[str, object]

    def join(self, name: str, **more: Any) -> AbstractAsyncContextManager[Harness]:
        """One more gateway."""
        return harness(self.folder, **self.options | more, node__name=name)


@pytest.fixture
def place(tmp_path, monkeypatch, tables_url) -> Place:
    key_file = str(tmp_path / "keys.json")
    monkeypatch.setenv("ICE_GATEWAY_TOKENS__KEY_FILE", key_file)  # for commands
    options = {
        "database__url": tables_url,
        "tokens__key_file": key_file,
        "server__public_url": [Nomad.PUBLIC],
        "server__insecure": True,
        "node__lease": LEASE,  # longer than a busy machine takes to renew one
    }
    return Place(tmp_path, options)


@pytest.fixture
def often_swept(place) -> None:
    """Nodes look at their peers often; name it before `cluster`."""
    place.options["tuning"] = Tuning(node=NodeLimits(sweep_interval=0.2))


@pytest.fixture
def short_lease(place) -> None:
    """Leases run out soon; name it before `cluster`."""
    place.options["node__lease"] = SHORT_LEASE


@pytest.fixture
async def cluster(place):
    async with contextlib.AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(place.join(f"node-{name}")) for name in "abc"]
        yield Cluster(*nodes)
        await nodes[0].close()  # or the other nodes would wait for its ICEs
