from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pytest

from tests.support.harness import Harness, harness
from tests.support.ice import Ice

PUBLIC = "http://gateway.example"
"""Where ICEs reach all of them: what their proofs name."""


class Nomad(Ice):
    """An ICE that comes to whichever node it is sent to."""

    def at(self, node: Harness) -> Nomad:
        self.url = node.url
        return self

    @property
    def htu(self) -> str:
        return f"{PUBLIC}/ice/v1"


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


@pytest.fixture
def options(database_url, tmp_path, monkeypatch):
    """The settings of a node, but for its name."""
    key_file = str(tmp_path / "keys.json")
    monkeypatch.setenv("ICE_GATEWAY_TOKENS__KEY_FILE", key_file)  # for commands
    return {
        "database__url": database_url,
        "tokens__key_file": key_file,
        "server__public_url": [PUBLIC],
        "server__insecure": True,
        "node__lease": "2s",
    }


@pytest.fixture
async def cluster(tmp_path, options):
    async with contextlib.AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(harness(tmp_path, **options, node__name=f"node-{name}"))
            for name in "abc"
        ]
        yield Cluster(*nodes)
        await nodes[0].close()  # or the other nodes would wait for its ICEs
