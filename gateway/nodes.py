"""The nodes as an operator sees them: who serves the database; to let one drain, or resume."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.errors import Problem, problem
from gateway.event import Actor, Event
from gateway.store import events, nodes
from gateway.store.engine import Engine, Transaction
from gateway.store.nodes import Node, Nodes
from gateway.times import Clock, from_text

DRAIN: Final = "drain-node"
RESUME: Final = "resume-node"
NODE_ACTIONS: Final = (DRAIN, RESUME)
"""After each of these a node asks at once what it is to do."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node, and how many ICEs it holds: it `serves`, is `drained`, or is `gone` without saying so."""

    node: Node
    connected: int

    @property
    def state(self) -> str:
        """In one word."""
        if self.node.left <= 0:
            return "gone"
        return "drained" if self.node.draining else "serves"

    @property
    def since(self) -> datetime:
        """When it started, by its own clock."""
        return from_text(self.node.since)


class NodeDesk:
    """The use case. Every method raises `StoreUnavailable`."""

    def __init__(self, *, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._nodes = Nodes(engine.fetch)
        self._clock = clock

    async def all(self) -> list[NodeState]:
        """Every node by name; none where a gateway is alone on an SQLite file."""
        held = await self._nodes.connected()
        return [NodeState(node, held.get(node.name, 0)) for node in await self._nodes.all()]

    async def set_draining(self, actor: Actor, name: str, *, draining: bool) -> Problem | None:
        """Let a node admit nobody and send its ICEs to the others, until it resumes."""
        event = Event(
            self._clock(), actor, DRAIN if draining else RESUME, None, None, {"node": name}
        )

        async def unit(transaction: Transaction) -> bool:
            if not await nodes.set_draining(transaction, name, draining=draining):
                return False
            events.append(transaction, [event])
            return True

        if await self._engine.write(unit):
            return None
        return problem("not-found", f"There is no node {name}.")
