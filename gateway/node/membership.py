"""This node as one of several on a database: its lease, its acknowledgements, news of the others.

A lease counts from a moment at which this node knew every committed change. So a peer that has waited
until the lease expired knows that this node no longer acts on older state. A gateway that is the only one on its
database has no membership.

Tested in tests/cluster/test_cluster.py and tests/cluster/test_vanished_nodes.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import structlog

from client.protocol import CloseCode
from gateway import __version__
from gateway.core.audit_event import AuditAction
from gateway.core.ice import RULES
from gateway.core.times import Clock
from gateway.node.commit_window import CommitWindow
from gateway.node.hub import ClosedSession, Hub
from gateway.node.lease import Lease, Peers
from gateway.node.log_follower import LogFollower
from gateway.node.presence import ConnectionChange, News
from gateway.node.session import Session
from gateway.runtime.clocks import SharedClock, boottime
from gateway.runtime.eventloop import wait_at_most
from gateway.store import nodes
from gateway.store.engine import Engine, StoreRefused, StoreUnavailable, Transaction
from gateway.store.key_file import KeyStore
from gateway.store.nodes import NodeRecord, Nodes
from gateway.store.sessions import newest, news

CONFIRMED_ACTIONS: Final = frozenset(
    {*(action.value for action, rule in RULES.items() if rule.renews), AuditAction.DISCONNECT}
)
"""The actions whose answer waits until every node has acted on them."""
_RENEWALS: Final = 6
"""Renewals per lease time."""
_RETRY: Final = 0.5
SWEEP_INTERVAL: Final = 5.0
"""Seconds at most between two checks of the peers and of the lease clock."""
_SWEEP_ALL_INTERVAL: Final = 60.0
"""Seconds at most between two looks at all sessions for those of no node; when the nodes change it looks at once."""
_PAUSE: Final = 0.1
"""Seconds between two reads of what other nodes wrote: a storm of ICEs is many commits."""
_NEWS_BATCH: Final = 1000
"""Connections that are read in one query."""
_COMPARE_PAUSE: Final = 20
"""How many times as long as it took is waited before sessions are compared again: in a storm, when all of them are
new, it takes a twentieth of the time at most.
"""
_LONGEST_COMPARE_PAUSE: Final = 30.0
"""Seconds after which they are compared in any case: a line that was slow once must not put it off for minutes."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """How the other nodes know this one; `instance` is new with each start."""

    name: str
    url: str
    instance: str = field(default_factory=lambda: secrets.token_hex(8))


class _Incompatible(StoreRefused):
    """This gateway cannot serve beside `other`, if that node is still alive."""

    def __init__(self, reason: str, other: NodeRecord) -> None:
        super().__init__(reason)
        self.other = other


class Membership:
    """Joins the nodes, renews the lease, acknowledges events, and leaves.

    Args:
        close_sessions: is called while the lease is expired.
        pause: is called with True when an admin drains the node, with False when it resumes.
        publish: is called with connections on other nodes and with refusals.
        sweep_interval: seconds at most between two checks of the peers and of the lease clock.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        identity: NodeIdentity,
        lease: Lease,
        follower: LogFollower,
        hub: Hub[Session],
        keys: KeyStore,
        clock: Clock,
        lease_time: SharedClock,
        close_sessions: Callable[[], None],
        pause: Callable[[bool], None],
        publish: Callable[[News], None],
        sweep_interval: float = SWEEP_INTERVAL,
    ) -> None:
        self._engine = engine
        self._identity = identity
        self._lease = lease
        self._follower = follower
        self._hub = hub
        self._keys = keys
        self._clock = clock
        self._lease_time = lease_time
        self._close_sessions = close_sessions
        self._pause = pause
        self._publish = publish
        self._sweep_interval = min(sweep_interval, lease.seconds / _RENEWALS)
        self._nodes = Nodes(engine.fetch)
        self._peers = Peers()
        self._sessions = CommitWindow()
        self._swept_peers: frozenset[str] | None = None
        self._sweep_all_at = 0.0
        self._dropped: list[nodes.Dropped] = []
        self._renewal_due = asyncio.Event()
        self._changed = asyncio.Event()
        self._paused = False
        self.fault: str | None = None
        """Why this node must not act, for an operator; None while its lease is valid."""

    async def join(self) -> None:
        """Become one of the nodes. The lease starts at once, since this node holds no session yet.

        Raises:
            StoreRefused: this gateway and a living node are incompatible. If that node does not renew its lease,
                this waits until it counts as gone.
            StoreUnavailable: the database could not be used.
        """
        self._lease.renew(await self._register())

    async def _register(self) -> float:
        """Add a row for this node; returns a time by `boottime` before that."""
        seen: dict[str, int] = {}
        while True:
            began = boottime()
            try:
                await self._insert()
            except _Incompatible as error:
                other = error.other
                if seen.setdefault(other.instance, other.renewals) != other.renewals:
                    raise
                await self._sweep()
                await asyncio.sleep(_RETRY)
            else:
                return began

    async def _insert(self) -> None:
        mine = self._keys.kids()
        newcomer = NodeRecord(
            self._identity.instance,
            self._identity.name,
            __version__,
            " ".join(sorted(mine)),
            self._identity.url,
            self._clock(),
            self._follower.position,
            draining=False,
            lease=self._lease.seconds,
        )

        async def unit(transaction: Transaction) -> None:
            for other in await nodes.alive(transaction):
                reason = _incompatibility(other, mine | self._keys.retired())
                if reason is not None:
                    raise _Incompatible(reason, other)
            await nodes.join(transaction, newcomer)

        await self._sync_lease_time()
        await self._engine.write(unit)

    async def _sync_lease_time(self) -> None:
        self._lease_time.set(await self._nodes.clock(self._lease_time()))

    # --- called by the rest of the node ----------------------------------------------------------------

    def report_drops(self, seq: int, ended: list[ClosedSession]) -> None:
        """Acknowledge an event for which actions wait, with the sessions that it ended here."""
        self._dropped += [
            nodes.Dropped(one.session, seq, self._identity.name, one.ice_name, one.code)
            for one in ended
        ]
        self._renewal_due.set()

    def renew_soon(self) -> None:
        """Renew now, to learn at once whether an admin has drained this node."""
        self._renewal_due.set()

    def wake(self) -> None:
        """Read what other nodes wrote: one of them may have committed."""
        self._changed.set()

    # --- running -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Renew the lease and acknowledge until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._listen())
            while True:
                pause = self._lease.seconds / _RENEWALS if await self._renew() else _RETRY
                await wait_at_most(self._renewal_due, pause)
                self._renewal_due.clear()

    async def _renew(self) -> bool:
        """Renew the lease and report the drops; returns whether that was done."""
        dropped: list[nodes.Dropped] = []
        try:
            caught_up_at = await self._follower.catch_up()
            # In one transaction with the position: a reader of the position also finds the drops.
            dropped, self._dropped = self._dropped, []
            renewal = functools.partial(
                nodes.renew,
                instance=self._identity.instance,
                seen_seq=self._follower.position,
                keys=" ".join(sorted(self._keys.kids())),
                dropped=dropped,
            )
            draining = await self._engine.write(renewal)
            if draining is None:
                # The others took this node for dead and no longer wait for it, so it drops its sessions.
                # The next renewal starts the lease, after this node has caught up.
                self._expire()
                await self._register()
                self._renewal_due.set()
                return False
        except (StoreUnavailable, StoreRefused) as error:
            self._dropped = dropped + self._dropped
            _log.debug("lease not renewed", reason=str(error))
            return False
        self._lease.renew(caught_up_at)
        self.fault = None
        if draining is not self._paused:
            self._paused = draining
            self._pause(draining)
        return True

    async def _watch(self) -> None:
        """Close every session when the lease expires."""
        while True:
            left = self._lease.until - boottime()
            if left > 0:
                await asyncio.sleep(left)
            else:
                self._expire()
                await asyncio.sleep(_RETRY)

    def _expire(self) -> None:
        if self.fault is None:
            self.fault = (
                "the lease of this node has expired: the node could not renew it in the database for"
                f" {self._lease.seconds:.0f} s"
            )
            _log.error("lease expired", node=self._identity.name)
        self._close_sessions()

    async def _listen(self) -> None:
        """Read what other nodes wrote, and clean up after vanished ones."""
        swept, compare_at, last = 0.0, 0.0, await self._newest()
        while True:
            await wait_at_most(self._changed, self._sweep_interval)
            self._changed.clear()
            with contextlib.suppress(StoreUnavailable):
                last = await self._publish_news(last)
                if (began := boottime()) > compare_at:
                    if await self._compare():
                        last = min(last, await newest(self._engine.fetch))
                    ended = boottime()
                    pause = min(_COMPARE_PAUSE * (ended - began), _LONGEST_COMPARE_PAUSE)
                    compare_at = ended + max(self._sweep_interval, pause)
                if boottime() - swept > self._sweep_interval:
                    swept = boottime()
                    await self._sync_lease_time()
                    await self._sweep()
            await asyncio.sleep(_PAUSE)

    async def _sweep(self) -> None:
        """Clean up after nodes that have vanished."""
        renewals = await self._nodes.renewals(but=self._identity.instance)
        vanished = self._peers.vanished(renewals)
        peers = frozenset(one.instance for one in renewals)
        all_sessions = peers != self._swept_peers or boottime() > self._sweep_all_at
        await self._engine.write(
            functools.partial(nodes.sweep, vanished=vanished, all_sessions=all_sessions)
        )
        if all_sessions:
            self._swept_peers, self._sweep_all_at = peers, boottime() + _SWEEP_ALL_INTERVAL

    async def _newest(self) -> int:
        while True:
            try:
                return await newest(self._engine.fetch)
            except StoreUnavailable:
                await asyncio.sleep(_RETRY)

    async def _compare(self) -> bool:
        """Close sessions whose ICE moved but whose news was missed: it is not numbered in the order of the commits.

        Returns whether another server of the database has answered than before.
        """
        snapshot = await self._nodes.snapshot()
        self._close_superseded(
            await self._nodes.superseded_since(self._identity.name, self._sessions.after)
        )
        return self._sessions.looked(snapshot)

    def _close_superseded(self, found: Iterable[tuple[str, str]]) -> None:
        for ice_name, session_id in found:
            session = self._hub.get(ice_name)
            if session is not None and session.id == session_id:
                session.close(CloseCode.SUPERSEDED)

    async def _publish_news(self, after: int) -> int:
        """Publish connections on other nodes, and all refusals, after number `after`; returns the last.

        A session here whose ICE has connected to another node since is closed.
        """
        last, found, refused = await news(self._engine.fetch, after, _NEWS_BATCH)
        moved = [
            ice_name
            for ice_name, connection in found.items()
            if connection is not None
            and connection.node != self._identity.name
            and ice_name in self._hub
        ]
        if moved:
            self._close_superseded(await self._nodes.superseded(self._identity.name, moved))
        for ice_name, connection in found.items():
            # `Presence` has published the connections of this node.
            if ice_name not in self._hub and (
                connection is None or connection.node != self._identity.name
            ):
                self._publish(ConnectionChange(ice_name, connection))
        for connection_event in refused:
            self._publish(connection_event)
        return last

    async def leave(self) -> None:
        """Remove this node; it holds no session any more."""
        with contextlib.suppress(StoreUnavailable):
            await self._engine.write(
                lambda transaction: nodes.leave(transaction, self._identity.instance)
            )


def _incompatibility(other: NodeRecord, known: frozenset[str]) -> str | None:
    """Why this gateway cannot serve beside `other`, for an operator; `known` are the ids of keys and retired keys."""
    if other.version.split(".")[:2] != __version__.split(".")[:2]:
        return (
            f"the node {other.name} runs version {other.version}, this is {__version__}: nodes of one"
            " database may differ only in the last number"
        )
    missing = set(other.keys.split()) - known
    if missing:
        return (
            f"the key file lacks {', '.join(sorted(missing))}, which the node {other.name} has: copy its"
            " key file to this machine, and see tokens.key_file"
        )
    return None
