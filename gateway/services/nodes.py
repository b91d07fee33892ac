"""The nodes that serve a database: list them, drain one, resume it.

Tested in tests/cluster/test_cluster.py and tests/cluster/test_node_pages.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.core.audit_event import Actor, AuditAction, Event
from gateway.core.problems import Problem, problem, quoted
from gateway.core.times import Clock
from gateway.store import events, nodes
from gateway.store.engine import Engine, Transaction
from gateway.store.nodes import Nodes


@dataclass(frozen=True, slots=True)
class DrainResult:
    """Whether the action `changed` anything, and whether `others` serve meanwhile."""

    changed: bool
    others: bool


class NodeService(Nodes):
    """Lists, drains and resumes nodes. Every method raises `StoreUnavailable`."""

    def __init__(self, *, engine: Engine, clock: Clock) -> None:
        super().__init__(engine.fetch)
        self._engine = engine
        self._clock = clock

    async def set_draining(
        self, actor: Actor, name: str, *, draining: bool
    ) -> Problem | DrainResult:
        """Drain a node, so that its ICEs move to the others, or resume it."""
        action = AuditAction.DRAIN_NODE if draining else AuditAction.RESUME_NODE
        event = Event.of(self._clock(), actor, action, node=name)

        async def unit(transaction: Transaction) -> bool:
            if not await nodes.set_draining(transaction, name, draining=draining):
                return False
            events.append(transaction, [event])
            return True

        changed = await self._engine.write(unit)
        found = [node for node in await self.all() if node.state != "gone"]
        if not any(node.name == name for node in found):
            return problem("not-found", f"There is no node {quoted(name)}.")
        others = any(node.state == "serves" and node.name != name for node in found)
        return DrainResult(changed, others)
