"""This node among the others that serve its database: its lease, its acknowledgements, what it hears of them.

A lease counts from a moment at which this node knew of every change, so that whoever waits until it has
run out knows that nothing goes on here by what was true before. A gateway that is alone has none to renew.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from gateway import __version__
from gateway.core.codes import AuditAction
from gateway.core.ice import RULES
from gateway.core.times import Clock
from gateway.node.hub import ClosedSession, Hub
from gateway.node.lease import Lease, Peers
from gateway.node.log_follower import LogFollower
from gateway.node.presence import Change, News
from gateway.node.session import Session
from gateway.runtime.clocks import SharedClock, boottime
from gateway.store import nodes
from gateway.store.engine import Engine, Fetch, StoreRefused, StoreUnavailable, Transaction
from gateway.store.key_file import KeyStore
from gateway.store.nodes import Node, Nodes
from gateway.store.sessions import newest, news

AWAITED: Final = frozenset(
    {*(action.value for action, rule in RULES.items() if rule.renews), AuditAction.DISCONNECT}
)
"""The actions whose answer waits until every node has acted on them."""
_RENEWALS: Final = 6
"""In the time of a lease."""
_RETRY: Final = 0.5
_SWEEP: Final = 5.0
"""Seconds between two looks for what nodes have left behind, and at the shared clock, at the most."""
_SUPERSEDED: Final = 4103
_PAUSE: Final = 0.1
"""Seconds between two looks at what others have written: a storm is many commits."""
_NEWS: Final = 1000
"""Comings and goings that are read at a time."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What this node tells of itself; `instance` is another with each start."""

    name: str
    instance: str
    url: str


def new_identity(name: str, url: str) -> NodeIdentity:
    """This node, just started."""
    return NodeIdentity(name, secrets.token_hex(8), url)


class _Misfit(StoreRefused):
    """This gateway does not fit to another, which may have gone, though."""

    def __init__(self, reason: str, other: Node) -> None:
        super().__init__(reason)
        self.other = other


class Membership:
    """Joins, renews, acknowledges and leaves; its collaborators come in through the constructor.

    `abandon` is called when the lease has run out, `drain` when an admin wants the node to admit
    nobody, or to go on, `tell` with who is connected elsewhere, and who was refused.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        me: NodeIdentity,
        lease: Lease,
        follower: LogFollower,
        hub: Hub[Session],
        keys: KeyStore,
        clock: Clock,
        lease_time: SharedClock,
        abandon: Callable[[], None],
        drain: Callable[[bool], None],
        tell: Callable[[News], None],
    ) -> None:
        self._engine = engine
        self._me = me
        self._lease = lease
        self._follower = follower
        self._hub = hub
        self._keys = keys
        self._clock = clock
        self._lease_time = lease_time
        self._abandon = abandon
        self._drain = drain
        self._tell = tell
        self._nodes = Nodes(engine.fetch)
        self._peers = Peers()
        self._dropped: list[nodes.Dropped] = []
        self._due = asyncio.Event()
        self._heard = asyncio.Event()
        self._draining = False
        self.fault: str | None = None
        """Why this node may not act, for an operator."""

    async def join(self) -> None:
        """Become one of the nodes, which holds nothing yet, so that its lease begins at once.

        Raises `StoreRefused` where this one does not fit to the others. One of those that shows no
        sign of life is waited for: it may have gone without saying so.
        """
        self._lease.renewed(await self._enter())

    async def _enter(self) -> float:
        """Have a row among the nodes; a time by `boottime` before that."""
        seen: dict[str, int] = {}
        while True:
            began = boottime()
            try:
                await self._join()
            except _Misfit as misfit:
                other = misfit.other
                if seen.setdefault(other.instance, other.renewals) != other.renewals:
                    raise
                await self._look_at_peers()
                await asyncio.sleep(_RETRY)
            else:
                return began

    async def _join(self) -> None:
        mine = self._keys.kids()
        newcomer = Node(
            self._me.instance,
            self._me.name,
            __version__,
            " ".join(sorted(mine)),
            self._me.url,
            self._clock(),
            self._follower.position,
            draining=False,
            lease=self._lease.seconds,
        )

        async def unit(transaction: Transaction) -> None:
            for other in await nodes.alive(transaction):
                reason = _misfit(other, mine)
                if reason is not None:
                    raise _Misfit(reason, other)
            await nodes.join(transaction, newcomer)

        await self._tell_time()
        await self._engine.write(unit)

    async def _tell_time(self) -> None:
        self._lease_time.set(await self._nodes.clock(self._lease_time()))

    # --- what the rest of the node tells ---------------------------------------------------------------

    def dropped(self, seq: int, ended: list[ClosedSession]) -> None:
        """An event that others wait for was acted on: tell them what it ended here."""
        self._dropped += [
            nodes.Dropped(one.session, seq, self._me.name, one.ice_name, one.code) for one in ended
        ]
        self._due.set()

    def ask(self) -> None:
        """Look at once whether this node is to drain."""
        self._due.set()

    def hear(self) -> None:
        """Somebody has committed something."""
        self._heard.set()

    # --- running -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Renew the lease and acknowledge until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._listen())
            while True:
                pause = self._lease.seconds / _RENEWALS if await self._renew() else _RETRY
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._due.wait()
                self._due.clear()

    async def _renew(self) -> bool:
        """Renew the lease by what this node knows, and tell what it has dropped; whether that was done."""
        told: list[nodes.Dropped] = []
        try:
            knew = await self._follower.know()
            # Together with the position, or others would be told that all is done, and not what.
            told, self._dropped = self._dropped, []
            renewal = functools.partial(
                nodes.renew,
                instance=self._me.instance,
                seen_seq=self._follower.position,
                keys=" ".join(sorted(self._keys.kids())),
                dropped=told,
            )
            draining = await self._engine.write(renewal)
            if draining is None:
                # Others have taken it for dead: what it holds they no longer count with. Its lease begins
                # when it knows of what has happened until it was back.
                self._run_out()
                await self._enter()
                self._due.set()
                return False
        except (StoreUnavailable, StoreRefused) as error:
            self._dropped = told + self._dropped
            _log.debug("lease not renewed", reason=str(error))
            return False
        self._lease.renewed(knew)
        self.fault = None
        if draining is not self._draining:
            self._draining = draining
            self._drain(draining)
        return True

    async def _watch(self) -> None:
        """End what goes on here when the lease has run out."""
        while True:
            left = self._lease.until - boottime()
            if left > 0:
                await asyncio.sleep(left)
            else:
                self._run_out()
                await asyncio.sleep(_RETRY)

    def _run_out(self) -> None:
        if self.fault is None:
            self.fault = (
                "the lease of this node has run out: it could not renew it in the database for"
                f" {self._lease.seconds:.0f} s"
            )
            _log.error("lease run out", node=self._me.name)
        self._abandon()

    async def _listen(self) -> None:
        """Hear what other nodes have written, and forget what dead ones left behind."""
        swept, told = 0.0, await self._patiently(newest)
        every = min(_SWEEP, self._lease.seconds / _RENEWALS)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await self._heard.wait()
            self._heard.clear()
            with contextlib.suppress(StoreUnavailable):
                await self._supersede()
                told = await self._pass_on(told)
                if boottime() - swept > every:
                    swept = boottime()
                    await self._tell_time()
                    await self._look_at_peers()
            await asyncio.sleep(_PAUSE)

    async def _look_at_peers(self) -> None:
        """Forget what dead nodes left behind."""
        vanished = self._peers.look(await self._nodes.renewals(but=self._me.instance))
        await self._engine.write(functools.partial(nodes.sweep, vanished=vanished))

    async def _patiently(self, read: Callable[[Fetch], Awaitable[int]]) -> int:
        while True:
            try:
                return await read(self._engine.fetch)
            except StoreUnavailable:
                await asyncio.sleep(_RETRY)

    async def _supersede(self) -> None:
        """End sessions whose ICE has come to another node since."""
        for ice_name, session_id in await self._nodes.superseded(self._me.name):
            session = self._hub.get(ice_name)
            if session is not None and session.id == session_id:
                session.close(_SUPERSEDED)

    async def _pass_on(self, told: int) -> int:
        """Tell readers of what came and went elsewhere, and of refusals anywhere, behind number `told`."""
        last, found, refused = await news(self._engine.fetch, told, _NEWS)
        for ice_name, connection in found.items():
            # What is here has been told when it was written.
            if ice_name not in self._hub and (
                connection is None or connection.node != self._me.name
            ):
                self._tell(Change(ice_name, connection))
        for happening in refused:
            self._tell(happening)
        return last

    async def leave(self) -> None:
        """Say that this node holds nothing any more."""
        with contextlib.suppress(StoreUnavailable):
            await self._engine.write(
                lambda transaction: nodes.leave(transaction, self._me.instance)
            )


def _misfit(other: Node, mine: frozenset[str]) -> str | None:
    """Why this gateway cannot serve beside `other`."""
    if other.version != __version__ and other.version.split(".")[:2] != __version__.split(".")[:2]:
        return (
            f"the node {other.name} runs version {other.version}, this is {__version__}: nodes of one"
            " database differ in the last number at the most"
        )
    missing = set(other.keys.split()) - mine
    if missing:
        return (
            f"the key file lacks {', '.join(sorted(missing))}, which the node {other.name} has: copy its"
            " key file to this machine, and see tokens.key_file"
        )
    return None
