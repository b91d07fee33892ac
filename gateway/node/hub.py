"""This node's sessions, and the handshakes that may become one.

*Add, then check*: admission adds a handshake here as pending before it reads the ICE. The read sees a
deregistration that commits before it; one that commits later finds the pending handshake here and marks it. With
check-then-add a deregistered ICE could slip in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from client.protocol import CloseCode
from gateway.core.audit_event import AuditAction, LogEntry
from gateway.core.ice import RULES, Status

_RENEWING: Final = {action.value: rule for action, rule in RULES.items() if rule.renews}


class Live(Protocol):
    """A session as the hub sees it."""

    id: str
    seq: int

    ice_name: str
    """The ICE's name, with its case."""

    generation: int
    """The generation that was admitted."""

    def close(self, code: int, reason: str | None = None) -> None:
        """End the session now; it removes itself from the hub."""


class Pending:
    """A handshake with a genuine token; its ICE is still to be read."""

    __slots__ = ("generation", "ice_name", "outdated")

    def __init__(self, ice_name: str, generation: int) -> None:
        self.ice_name = ice_name
        self.generation = generation
        self.outdated = False
        """An event has changed the ICE since: read it again."""


@dataclass(frozen=True, slots=True)
class ClosedSession:
    """A session that an event closed."""

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
        """The session of this ICE; the case of the name counts."""
        return self._sessions.get(ice_name)

    def expect(self, ice_name: str, generation: int) -> Pending:
        """Add a handshake, before its ICE is read."""
        pending = Pending(ice_name, generation)
        self._pending.setdefault(ice_name, set()).add(pending)
        return pending

    def forget(self, pending: Pending) -> None:
        """Remove this handshake; others of the same name stay."""
        others = self._pending.get(pending.ice_name)
        if others is not None:
            others.discard(pending)
            if not others:
                del self._pending[pending.ice_name]

    def is_outdated(self, pending: Pending) -> bool:
        """Whether the ICE that was read for `pending` may have changed since."""
        session = self._sessions.get(pending.ice_name)
        return pending.outdated or (session is not None and session.generation > pending.generation)

    def promote(self, pending: Pending, session: L) -> None:
        """Replace the handshake by its session, which supersedes the older session of this ICE."""
        self.forget(pending)
        older = self._sessions.get(session.ice_name)
        self._sessions[session.ice_name] = session
        if older is not None:
            older.close(CloseCode.SUPERSEDED)

    def remove(self, session: L) -> None:
        """Remove a session, unless a newer one has replaced it."""
        if self._sessions.get(session.ice_name) is session:
            del self._sessions[session.ice_name]

    def apply(self, entry: LogEntry) -> list[ClosedSession]:
        """Apply an event of the log: close the session and mark the handshakes that it makes invalid.

        This affects only lower generations, so that a slow follower of the log never closes an ICE that was just
        reregistered.
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

    def reconcile(self, sessions: Sequence[L], ices: Mapping[str, tuple[int, Status]]) -> None:
        """Close those of `sessions` that the table no longer allows, after the log was lost for a while.

        Args:
            sessions: the sessions from before the table was read; newer ones were judged by it.
            ices: generation and status by name.
        """
        for session in sessions:
            generation, status = ices.get(session.ice_name, (0, Status.PROVISIONED))
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
