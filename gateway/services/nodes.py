"""The nodes that serve a database: list them, drain one, resume it.

Tested in tests/cluster/test_cluster.py and tests/cluster/test_node_pages.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway.core.audit_event import Actor, AuditAction, Event
from gateway.core.problems import Problem, problem, quoted
from gateway.core.times import Clock
from gateway.store import events, nodes
from gateway.store.engine import Engine, Transaction
from gateway.store.nodes import NodeRecord, Nodes


@dataclass(frozen=True, slots=True)
class DrainResult:
    """The node, whether the action `changed` it, and whether `others` serve meanwhile."""

    node: NodeRecord
    changed: bool
    others: bool


class NodeService(Nodes):
    """Lists, drains and resumes nodes. Every method raises `StoreUnavailable`."""

    def __init__(self, *, engine: Engine, clock: Clock) -> None:
        super().__init__(engine.fetch)
        self._engine = engine
        self._clock = clock

    async def set_draining(
        self, actor: Actor, name: str, *, draining: bool, force: bool = False
    ) -> Problem | DrainResult:
        """Drain a node, so that its ICEs move to the others, or resume it.

        Without `force` the last node that serves is not drained.
        """
        action = AuditAction.DRAIN_NODE if draining else AuditAction.RESUME_NODE
        event = Event.of(self._clock(), actor, action, node=name)

        async def unit(transaction: Transaction) -> Problem | DrainResult:
            # All are locked, so that two admins do not drain the last two.
            found = [node for node in await nodes.hold(transaction) if not node.gone]
            node = next((node for node in found if node.name == name), None)
            if node is None:
                return problem("not-found", f"There is no node {quoted(name)}.")
            others = any(other.state == "serves" for other in found if other is not node)
            if draining and not (node.draining or others or force):
                return problem("last-node")
            changed = node.draining is not draining
            if changed:
                await nodes.set_draining(transaction, name, draining=draining)
                events.append(transaction, [event])
            return DrainResult(replace(node, draining=draining), changed, others)

        return await self._engine.write(unit)
