"""Decides whether to admit an ICE: token, proof, ICE, in the order of docs/protocol.md.

It refuses invalid tokens and proofs without a database query. The first admission registers the ICE.

A token of a retired key does not open. If its hash is that of a registered ICE's token, that ICE is admitted with
its own key as before. Only such a token can make a query without being genuine, and an address that has sent
too many tokens which were not gets none.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, TypeVar

from client.protocol import PATH, RefusalCode
from gateway.core.audit_event import Actor, Event, Via
from gateway.core.dpop import Invalid, Proof, Url, normalise, verify
from gateway.core.ice import Action, Ice, Status, WrongStatus
from gateway.core.problems import refusal
from gateway.core.rate_limit import RateLimiter
from gateway.core.replay import Nonces, ReplayGuard, proof_id
from gateway.core.secret import Secret
from gateway.core.times import Clock
from gateway.core.tokens import OpenedToken, RetiredToken
from gateway.node.hub import Hub, Live
from gateway.node.lease import Lease
from gateway.node.log_follower import LogFollower
from gateway.node.restore_hold import RestoreHold
from gateway.node.verdict import Admitted, Candidate, Handshake, Refused, Unrecognised
from gateway.store import ices
from gateway.store.engine import Engine, StoreUnavailable
from gateway.store.ice_loader import IceLoader, Reading
from gateway.store.key_file import KeyStore

MAX_AGE: Final = 1.0
"""Seconds after which an ICE is read again."""
ATTEMPTS: Final = 100
"""Handshakes without a genuine token that an address may send within `ATTEMPTS_WINDOW` seconds."""
ATTEMPTS_WINDOW: Final = 60.0
MAX_BATCH: Final = 128
"""The maximum number of handshakes screened in one turn of the loop, some 20 ms of work."""
_SCHEME: Final = "dpop "


class _Arrival:
    """A handshake in the steps of `_screen`; each adds its result."""

    __slots__ = ("handshake", "opened", "proof", "token", "verdict")

    token: Secret
    opened: OpenedToken | RetiredToken
    proof: Proof

    def __init__(
        self, handshake: Handshake, verdict: asyncio.Future[Candidate | Unrecognised | Refused]
    ) -> None:
        self.handshake = handshake
        self.verdict = verdict

    @property
    def ice_name(self) -> str | None:
        """The name in the token, if it was opened."""
        return self.opened.ice_name if isinstance(self.opened, OpenedToken) else None


S = TypeVar("S", bound=Live)
OpenSession = Callable[[Admitted], S | Refused | None]
"""Writes the 101 without an await; returns the session, a refusal, or None if the client has gone."""


class Admission:
    """Decides on handshakes."""

    def __init__(
        self,
        *,
        keys: KeyStore,
        engine: Engine,
        hub: Hub[Any],
        loader: IceLoader,
        follower: LogFollower,
        restore_hold: RestoreHold,
        lease: Lease,
        clock: Clock,
        nonces: Nonces,
        lease_time: Callable[[], float],
        public_urls: tuple[str, ...],
        monotonic: Callable[[], float] = time.monotonic,
        attempts: int = ATTEMPTS,
        max_batch: int = MAX_BATCH,
        looked_up: Callable[[bool], None],
    ) -> None:
        self._keys = keys
        self._engine = engine
        self._hub = hub
        self.loader = loader
        """Loads the ICEs of the handshakes."""
        self._follower = follower
        self._restore_hold = restore_hold
        self._lease = lease
        self._clock = clock
        self._monotonic = monotonic
        self._lease_time = lease_time
        self.nonces = nonces
        self.replays = ReplayGuard(nonces)
        """The used proofs."""
        self._attempts = RateLimiter(attempts, ATTEMPTS_WINDOW)
        self._looked_up = looked_up
        self._max_batch = max_batch
        self._arrived: list[_Arrival] = []
        self._public = tuple(url + PATH for url in public_urls)
        self._urls = _normalised(self._public)

    async def admit(self, handshake: Handshake, open_session: OpenSession[S]) -> S | Refused | None:
        """Admit an ICE or refuse it; None if the client has gone meanwhile.

        Add, then check: the handshake is in the hub before the ICE is read. There is no await between the last
        check and the 101, which `open_session` writes.

        An ICE that was found by its token's hash was read before. That reading counts only if no later event
        had been applied here when the handshake came into the hub: then each later one finds it there.
        """
        candidate = await self._screen(handshake)
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

    # --- before the database -----------------------------------------------------------------------

    async def _screen(self, handshake: Handshake) -> Candidate | Unrecognised | Refused:
        """Open the token and check the proof, in a batch of at most `max_batch` waiting handshakes.

        Each step handles the whole batch before the next step: its code and tables stay in the processor's
        caches, which makes an admission in a storm a tenth cheaper.
        """
        loop = asyncio.get_running_loop()
        arrival = _Arrival(handshake, loop.create_future())
        self._arrived.append(arrival)
        if len(self._arrived) == 1:
            loop.call_soon(self._screen_some)
        return await arrival.verdict

    def _screen_some(self) -> None:
        arrived, self._arrived = self._arrived[: self._max_batch], self._arrived[self._max_batch :]
        try:
            for step in (self._open_token, self._verify_proof, self._use_proof):
                for arrival in arrived:
                    if arrival.verdict.done():  # refused, or its client has gone
                        continue
                    try:
                        verdict = step(arrival)
                    except Exception as error:  # noqa: BLE001 - raised only in the caller of this arrival
                        arrival.verdict.set_exception(error)
                    else:
                        if verdict is not None:
                            arrival.verdict.set_result(verdict)
        finally:
            # Schedule the others even if this batch failed.
            if self._arrived:
                asyncio.get_running_loop().call_soon(self._screen_some)

    def _open_token(self, arrival: _Arrival) -> Refused | None:
        handshake = arrival.handshake
        tokens = [
            value[len(_SCHEME) :].strip()
            for value in handshake.authorizations
            if value[: len(_SCHEME)].lower() == _SCHEME  # RFC 9110: schemes are case-insensitive
        ]
        if not tokens or not tokens[0]:
            self.count_attempt(handshake.address)
            return Refused(refusal(RefusalCode.TOKEN_MISSING))
        token = Secret(tokens[0])
        opened = self._keys.open(token) if len(tokens) == 1 else None
        if opened is None:
            return self._invalid_token(handshake.address)
        arrival.token, arrival.opened = token, opened
        return None

    def _verify_proof(self, arrival: _Arrival) -> Refused | None:
        handshake, name = arrival.handshake, arrival.ice_name
        # RFC 9449 section 4.3, check 1: at most one DPoP header.
        if len(handshake.proofs) != 1:
            detail = "There must be exactly one DPoP header"
            return Refused(refusal(RefusalCode.PROOF_INVALID, detail=detail), name)
        names = self._public or handshake.local
        urls = self._urls or _normalised(names)  # cached, as there are few
        proof = verify(
            handshake.proofs[0],
            token=arrival.token.reveal(),
            urls=urls,
            expected=" or ".join(names),
        )
        if isinstance(proof, Invalid):
            return Refused(refusal(RefusalCode.PROOF_INVALID, detail=_sentence(proof.detail)), name)
        arrival.proof = proof
        return None

    def _use_proof(self, arrival: _Arrival) -> Candidate | Unrecognised | Refused:
        proof, opened, address = arrival.proof, arrival.opened, arrival.handshake.address
        if isinstance(opened, RetiredToken):
            # Its proof is remembered once the token has proved to be genuine.
            return self.accept(proof, None, self.replays.fresh) or Unrecognised(
                opened, proof, address
            )
        return self.accept(proof, opened.ice_name, self.replays.accept) or Candidate(
            opened, proof.thumbprint, address, self.shared_id(proof)
        )

    def accept(
        self, proof: Proof, ice_name: str | None, accept: Callable[[Proof, float, float], bool]
    ) -> Refused | None:
        """The refusal of a proof that was used before or is not fresh, by `accept` of `replays`; otherwise None."""
        now, lease_time = self._clock().timestamp(), self._lease_time()
        if self.replays.used(proof, now, lease_time):
            return _replayed(ice_name)
        if accept(proof, now, lease_time):
            return None
        wanted = refusal(RefusalCode.USE_DPOP_NONCE, nonce=self.nonces.issue(lease_time))
        return Refused(wanted, ice_name)

    def shared_id(self, proof: Proof) -> str:
        """The name under which the nodes of one database remember the proof; empty for a single gateway."""
        return proof_id(proof.thumbprint, proof.jti).hex() if self._engine.shared else ""

    def _invalid_token(self, address: str, ice_name: str | None = None) -> Refused:
        """`ice_name` only if the token was genuine and its ICE exists."""
        wait = self.count_attempt(address)
        if wait:
            code = RefusalCode.TOO_MANY_ATTEMPTS
            return Refused(refusal(code, retry_after=math.ceil(wait)), ice_name)
        return Refused(refusal(RefusalCode.TOKEN_INVALID), ice_name)

    def count_attempt(self, address: str) -> float:
        """Count a request without anything genuine; returns the seconds for which the address is refused."""
        return self._attempts.count(address, self._monotonic())

    # --- with the database ---------------------------------------------------------------------------

    async def _recognise(self, arrived: Unrecognised) -> Candidate | Refused:
        """Find the registered ICE whose token this is."""
        digest, proof = arrived.token.digest, arrived.proof
        refused = self.refuse_all(None)
        if refused is not None:
            return refused
        shared_id = self.shared_id(proof)
        try:
            reading = await self.loader.find_by_token(digest, shared_id or None)
        except StoreUnavailable:
            return unavailable(None)
        ice = reading.ice
        found = ice is not None and ice.status is Status.REGISTERED
        self._looked_up(found)
        if ice is None or not found:
            return self._invalid_token(arrived.address)
        refused = self.accept(proof, ice.ice_name, self.replays.accept)
        if refused is not None:
            return refused
        if reading.replayed:
            return _replayed(ice.ice_name)
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
            return _replayed(token.ice_name)
        if ice is None:
            return self._invalid_token(candidate.address)
        code = ice.judge(
            token.ice_type,
            token.generation,
            token.digest,
            candidate.thumbprint,
            self._clock(),
            made_for=token.thumbprint,
        )
        if code is RefusalCode.TOKEN_INVALID:
            return self._invalid_token(candidate.address, ice.ice_name)
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
        logged = await self._engine.write(
            lambda transaction: ices.swap(transaction, ice, registered, event)
        )
        return None if logged is None else Admitted(registered, logged.seq, at, reading)

    def _is_current(self, admitted: Admitted) -> bool:
        """Whether the ICE was read just now, and this node knows every change since."""
        fresh = self._monotonic() - admitted.at <= MAX_AGE
        return fresh and self._follower.current and self._lease.valid


@lru_cache(64)
def _normalised(names: tuple[str, ...]) -> frozenset[Url]:
    return frozenset(filter(None, map(normalise, names)))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _replayed(ice_name: str | None) -> Refused:
    used = refusal(RefusalCode.PROOF_INVALID, detail="The proof was used before", retry=True)
    return Refused(used, ice_name)


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
