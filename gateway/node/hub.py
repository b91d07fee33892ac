"""This node's live sessions, and the handshakes that may become one.

*Add, then check*: an arriving ICE is put here as pending before its entry is read. A deregistration
that commits before the read is seen by the read; one that commits after it finds the pending entry
here and marks it. With check-then-add there would be a gap through which a deregistered ICE gets in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from client.protocol import CloseCode
from gateway.core.audit_event import AuditAction, Entry
from gateway.core.ice import RULES, Status

_RENEWING: Final = {action.value: rule for action, rule in RULES.items() if rule.renews}


class Live(Protocol):
    """A session as the hub sees it."""

    id: str
    seq: int

    @property
    def ice_name(self) -> str:
        """The ICE's name, exactly."""

    @property
    def generation(self) -> int:
        """The generation that was admitted."""

    def close(self, code: int, reason: str | None = None) -> None:
        """End the session now; it takes itself out of the hub."""


class Pending:
    """A handshake whose token opened and whose entry is still to be read."""

    __slots__ = ("generation", "ice_name", "outdated")

    def __init__(self, ice_name: str, generation: int) -> None:
        self.ice_name = ice_name
        self.generation = generation
        self.outdated = False
        """An event has overtaken what was read: read again."""


@dataclass(frozen=True, slots=True)
class ClosedSession:
    """A session that an event ended."""

    ice_name: str
    session: str
    code: int


L = TypeVar("L", bound=Live)


class Hub(Generic[L]):
    """Holds at most one session of each ICE, and any number of pending handshakes."""

    def __init__(self) -> None:
        self._pending: dict[str, set[Pending]] = {}
        self._sessions: dict[str, L] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[L]:
        return iter(list(self._sessions.values()))

    def __contains__(self, ice_name: str) -> bool:
        return ice_name in self._sessions

    def get(self, ice_name: str) -> L | None:
        """The session of exactly this name."""
        return self._sessions.get(ice_name)

    def expect(self, ice_name: str, generation: int) -> Pending:
        """Add a handshake, before its entry is read."""
        pending = Pending(ice_name, generation)
        self._pending.setdefault(ice_name, set()).add(pending)
        return pending

    def forget(self, pending: Pending) -> None:
        """Take a handshake out; its own entry only, others of the same name stay."""
        others = self._pending.get(pending.ice_name)
        if others is not None:
            others.discard(pending)
            if not others:
                del self._pending[pending.ice_name]

    def overtaken(self, pending: Pending) -> bool:
        """Whether what was read for `pending` may no longer hold."""
        session = self._sessions.get(pending.ice_name)
        return pending.outdated or (session is not None and session.generation > pending.generation)

    def promote(self, pending: Pending, session: L) -> None:
        """Make the handshake a session; the older session of this ICE is superseded."""
        self.forget(pending)
        older = self._sessions.get(session.ice_name)
        self._sessions[session.ice_name] = session
        if older is not None:
            older.close(CloseCode.SUPERSEDED)

    def remove(self, session: L) -> None:
        """Take a session out, unless a newer one has its place."""
        if self._sessions.get(session.ice_name) is session:
            del self._sessions[session.ice_name]

    def apply(self, entry: Entry) -> list[ClosedSession]:
        """Do what an event of the log demands: end what it has made invalid.

        Only pending entries and sessions of a lower generation are concerned, so that a slow tail
        never closes a freshly reregistered ICE.
        """
        event = entry.event
        name, generation = event.ice_name, event.generation
        if name is None or generation is None:
            return []
        if event.action == AuditAction.DISCONNECT:
            return self._drop(name, CloseCode.DISCONNECTED, lambda session: session.seq < entry.seq)
        rule = _RENEWING.get(event.action)
        if rule is None:
            return []
        for pending in self._pending.get(name, ()):
            if pending.generation < generation:
                pending.outdated = True
        return self._drop(
            name,
            rule.closes or CloseCode.TOKEN_REPLACED,
            lambda session: session.generation < generation,
        )

    def doubt(self, sessions: Sequence[L], standing: Mapping[str, tuple[int, Status]]) -> None:
        """End those of `sessions` that the table does not bear out, after the log was lost for a while.

        Args:
            sessions: who was here before the table was asked; who has come since was judged by it.
            standing: generation and status by name.
        """
        for session in sessions:
            generation, status = standing.get(session.ice_name, (0, Status.PROVISIONED))
            if generation != session.generation or status is not Status.REGISTERED:
                deregistered = status is Status.DEREGISTERED
                session.close(CloseCode.DEREGISTERED if deregistered else CloseCode.TOKEN_REPLACED)
        for others in self._pending.values():
            for pending in others:
                pending.outdated = True

    def _drop(
        self, ice_name: str, code: CloseCode, which: Callable[[L], bool]
    ) -> list[ClosedSession]:
        session = self._sessions.get(ice_name)
        if session is None or not which(session):
            return []
        session.close(code)
        return [ClosedSession(ice_name, session.id, code)]
