"""Decides whether to admit an ICE: token and proof (`screening`), then the ICE, in the order of docs/protocol.md.

The first admission registers the ICE.

A token of a retired key does not open. If its hash is that of a registered ICE's token, that ICE is admitted with
its own key as before. Only such a token can make a query without being genuine, and an address that has sent
too many tokens which were not gets none.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from client.protocol import RefusalCode
from gateway.core.audit_event import Actor, Event, Via
from gateway.core.ice import Action, Ice, Status, WrongStatus
from gateway.core.problems import refusal
from gateway.core.times import Clock
from gateway.core.tokens import OpenedToken
from gateway.node.hub import Hub, Live
from gateway.node.lease import Lease
from gateway.node.log_follower import LogFollower
from gateway.node.restore_hold import RestoreHold
from gateway.node.screening import Screening, replayed
from gateway.node.verdict import Admitted, Candidate, Handshake, Refused, Unrecognised
from gateway.store import ices
from gateway.store.engine import Engine, Part, StoreUnavailable
from gateway.store.ice_loader import IceLoader, Reading

MAX_AGE: Final = 1.0
"""Seconds after which an ICE is read again."""

S = TypeVar("S", bound=Live)
OpenSession = Callable[[Admitted], S | Refused | None]
"""Writes the 101 without an await; returns the session, a refusal, or None if the client has gone."""


class Admission:
    """Decides on handshakes."""

    def __init__(
        self,
        *,
        screening: Screening,
        engine: Engine,
        hub: Hub[Any],
        loader: IceLoader,
        follower: LogFollower,
        restore_hold: RestoreHold,
        lease: Lease,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
        looked_up: Callable[[bool], None],
    ) -> None:
        self.screening = screening
        """Checks handshakes before the database is asked."""
        self._engine = engine
        self._hub = hub
        self.loader = loader
        """Loads the ICEs of the handshakes."""
        self._follower = follower
        self._restore_hold = restore_hold
        self._lease = lease
        self._clock = clock
        self._monotonic = monotonic
        self._looked_up = looked_up

    async def admit(self, handshake: Handshake, open_session: OpenSession[S]) -> S | Refused | None:
        """Admit an ICE or refuse it; None if the client has gone meanwhile.

        Add, then check: the handshake is in the hub before the ICE is read. There is no await between the last
        check and the 101, which `open_session` writes.

        An ICE that was found by its token's hash was read before. That reading counts only if no later event
        had been applied here when the handshake came into the hub: then each later one finds it there.
        """
        candidate = await self.screening.screen(handshake)
        if isinstance(candidate, Unrecognised):
            candidate = await self._recognise(candidate)
        if isinstance(candidate, Refused):
            return candidate
        pending = self._hub.expect(candidate.token.ice_name, candidate.token.generation)
        reading = candidate.reading
        again = reading is not None
        if reading is not None and reading.seq < self._follower.position:
            reading = None
        try:
            while True:
                pending.outdated = False
                verdict = await self._decide(candidate, reading, again=again)
                reading = None
                if isinstance(verdict, Refused):
                    return verdict
                if self._is_current(verdict) and not self._hub.is_outdated(pending):
                    break
                again = True
            opened = open_session(verdict)
            if opened is not None and not isinstance(opened, Refused):
                self._hub.promote(pending, opened)
            return opened
        finally:
            self._hub.forget(pending)

    async def _recognise(self, arrived: Unrecognised) -> Candidate | Refused:
        """Find the registered ICE whose token this is."""
        digest, proof = arrived.token.digest, arrived.proof
        refused = self.refuse_all(None)
        if refused is not None:
            return refused
        shared_id = self.screening.shared_id(proof)
        try:
            reading = await self.loader.find_by_token(digest, shared_id or None)
        except StoreUnavailable:
            return unavailable(None)
        ice = reading.ice
        found = ice is not None and ice.status is Status.REGISTERED
        self._looked_up(found)
        if ice is None or not found:
            return self.screening.invalid_token(arrived.address)
        refused = self.screening.accept(proof, ice.ice_name, self.screening.replays.accept)
        if refused is not None:
            return refused
        if reading.replayed:
            return replayed(ice.ice_name)
        token = OpenedToken(ice.ice_name, ice.ice_type, ice.generation, digest)
        return Candidate(token, proof.thumbprint, arrived.address, shared_id, reading)

    async def _decide(
        self, candidate: Candidate, reading: Reading | None, *, again: bool
    ) -> Admitted | Refused:
        """Read the ICE now, unless `reading` is given, and judge it; register it on its first admission.

        `again`: the proof has been used, as the last verdict became outdated or the ICE was found by its token.
        """
        name = candidate.token.ice_name
        proof = (candidate.proof,) if candidate.proof and not again else ()
        while True:
            refused = self.refuse_all(name)
            if refused is not None:
                return refused
            try:
                if reading is None:
                    reading = await self.loader.find(name, *proof)
                    proof = ()
                verdict = self._judge(reading, candidate)
                if not isinstance(verdict, Ice):
                    return verdict
                registered = await self._register(verdict, candidate, reading.number)
                if registered is not None:
                    return registered
                # Another change won the compare-and-set: read and judge again.
                reading = None
            except StoreUnavailable:
                return unavailable(name)

    def refuse_all(self, name: str | None) -> Refused | None:
        """The refusal while this node admits no ICE; the look-up finds a store that is unavailable."""
        if self._follower.fault is not None or not self._lease.valid:
            return unavailable(name)  # this node could not drop the ICE later
        return None if self._restore_hold.reason is None else _held(name)

    def _judge(self, reading: Reading, candidate: Candidate) -> Admitted | Refused | Ice:
        """The verdict on what was read; an ICE that may register is returned itself."""
        ice, token = reading.ice, candidate.token
        if reading.replayed:
            return replayed(token.ice_name)
        if ice is None:
            return self.screening.invalid_token(candidate.address)
        code = ice.judge(
            token.ice_type,
            token.generation,
            token.digest,
            candidate.thumbprint,
            self._clock(),
            made_for=token.thumbprint,
        )
        if code is RefusalCode.TOKEN_INVALID:
            return self.screening.invalid_token(candidate.address, ice.ice_name)
        if code is not None:
            return Refused(refusal(code), ice.ice_name)
        if ice.status is Status.REGISTERED:
            return Admitted(ice, reading.seq, reading.at, reading.number)
        return ice

    async def _register(self, ice: Ice, candidate: Candidate, reading: float) -> Admitted | None:
        now, at = self._clock(), self._monotonic()
        registered = ice.register(candidate.thumbprint, now=now)
        assert not isinstance(registered, WrongStatus)  # noqa: S101 - the caller has judged it
        event = Event(
            now,
            Actor(ice.ice_name, Via.ICE, candidate.address),
            Action.REGISTER,
            ice.ice_name,
            registered.generation,
            {
                "generation_before": ice.generation,
                "status_before": ice.status,
                "key_thumbprint": candidate.thumbprint,
            },
        )
        logged = await self._engine.write(Part(ices.register, (ice, registered, event)))
        return None if logged is None else Admitted(registered, logged.seq, at, reading)

    def _is_current(self, admitted: Admitted) -> bool:
        """Whether the ICE was read just now, and this node knows every change since."""
        fresh = self._monotonic() - admitted.at <= MAX_AGE
        return fresh and self._follower.current and self._lease.valid


def _held(ice_name: str | None) -> Refused:
    wait = random.randint(10, 30)  # noqa: S311 - spreads load; a person has to act first
    detail = "The table was restored from a backup and waits for the admin to confirm it"
    return Refused(
        refusal(RefusalCode.STORE_UNAVAILABLE, detail=detail, retry_after=wait), ice_name
    )


def unavailable(ice_name: str | None) -> Refused:
    """The refusal while the database cannot be used."""
    wait = random.randint(1, 5)  # noqa: S311 - spreads load
    return Refused(refusal(RefusalCode.STORE_UNAVAILABLE, retry_after=wait), ice_name)
