"""Checks handshakes before the database is asked: the token, the proof, and that the proof was not used before.

The proofs of machines that enrol are checked in the same batches. Refusing an invalid token or proof costs no query. Handshakes that arrive at once are checked together.

Tested in tests/unit/node/test_screening.py and tests/gateway/node/test_admission.py.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final

import msgspec

from client.protocol import PATH, RefusalCode
from gateway.core.dpop import Invalid, Proof, Signed, Url, normalise, read
from gateway.core.problems import refusal
from gateway.core.rate_limit import RateLimiter
from gateway.core.replay import Nonces, ReplayGuard, proof_id
from gateway.core.secret import Secret
from gateway.core.times import Clock
from gateway.core.tokens import OpenedToken, RetiredToken
from gateway.node.signature_helper import SignatureHelper
from gateway.node.verdict import Candidate, Handshake, Refused, Unrecognised
from gateway.store.key_file import KeyStore

ATTEMPTS: Final = 100
"""Handshakes without a genuine token that an address may send within `ATTEMPTS_WINDOW` seconds."""
ATTEMPTS_WINDOW: Final = 60.0
MAX_BATCH: Final = 128
"""The maximum number of handshakes screened in one turn of the loop, some 20 ms of work."""
_SCHEME: Final = "dpop "

_Verdict = Candidate | Unrecognised | Refused | Proof


class _Proven(msgspec.Struct, frozen=True, gc=False):
    """What the proof must be for: the bearer's secret, the method, and the URL of handshakes with a suffix."""

    secret: Secret
    method: str
    suffix: str


class _Arrival:
    """A handshake, or a request to enrol, in the steps of a batch; each step adds its result."""

    __slots__ = ("handshake", "opened", "proof", "proven", "signed", "token", "verdict", "verified")

    token: Secret
    opened: OpenedToken | RetiredToken | None
    signed: Signed
    proof: Proof

    def __init__(
        self,
        handshake: Handshake,
        verdict: asyncio.Future[_Verdict],
        proven: _Proven | None = None,
    ) -> None:
        self.handshake = handshake
        self.verdict = verdict
        self.opened = None
        self.proven = proven
        """What the proof of a request to enrol must be for; None for a handshake, which has a token to open."""
        self.verified = False
        """The signature helper has found the signature valid."""

    @property
    def ice_name(self) -> str | None:
        """The name in the token, if it was opened."""
        return self.opened.ice_name if isinstance(self.opened, OpenedToken) else None


class Screening:
    """Checks tokens and proofs.

    `shared` says whether several nodes serve the database.
    """

    def __init__(
        self,
        *,
        keys: KeyStore,
        shared: bool,
        clock: Clock,
        lease_time: Callable[[], float],
        public_urls: tuple[str, ...],
        signatures: SignatureHelper,
        monotonic: Callable[[], float] = time.monotonic,
        attempts: int = ATTEMPTS,
        max_batch: int = MAX_BATCH,
    ) -> None:
        self._keys = keys
        self._shared = shared
        self._clock = clock
        self._monotonic = monotonic
        self._lease_time = lease_time
        self._nonces = Nonces(_nonce_keys(keys, shared=shared))
        self.replays = ReplayGuard(self._nonces)
        """The used proofs."""
        self.signatures = signatures
        self._attempts = RateLimiter(attempts, ATTEMPTS_WINDOW)
        self._max_batch = max_batch
        self._arrived: list[_Arrival] = []
        self._screening: asyncio.Task[None] | None = None
        """The last batch whose signatures are being checked."""
        self._public = tuple(url + PATH for url in public_urls)

    async def screen(self, handshake: Handshake) -> Candidate | Unrecognised | Refused:
        """Open the token and check the proof, in a batch of at most `max_batch` waiting handshakes.

        Each step handles the whole batch before the next step: its code and tables stay in the processor's
        caches, which makes an admission in a storm a tenth cheaper. A large batch has its signatures checked on
        another core.
        """
        verdict = await self._arrive(handshake)
        assert not isinstance(verdict, Proof)  # noqa: S101 - that is the verdict on a proof alone
        return verdict

    async def prove(
        self, handshake: Handshake, secret: Secret, method: str, suffix: str
    ) -> Proof | Refused:
        """Check the proof of a bearer of `secret`, in a batch like `screen`.

        It must be for `method` on the URL of handshakes with this `suffix`.
        """
        verdict = await self._arrive(handshake, _Proven(secret, method, suffix))
        assert isinstance(verdict, Proof | Refused)  # noqa: S101 - it has no token
        return verdict

    async def _arrive(self, handshake: Handshake, proven: _Proven | None = None) -> _Verdict:
        loop = asyncio.get_running_loop()
        arrival = _Arrival(handshake, loop.create_future(), proven)
        self._arrived.append(arrival)
        if len(self._arrived) == 1:
            loop.call_soon(self._screen_some)
        return await arrival.verdict

    def _screen_some(self) -> None:
        arrived, self._arrived = self._arrived[: self._max_batch], self._arrived[self._max_batch :]
        try:
            self._do(self._open_token, arrived)
            self._do(self._read_proof, arrived)
            waiting = [arrival for arrival in arrived if not arrival.verdict.done()]
            valid = self.signatures.check([arrival.signed.signature for arrival in waiting])
            if valid is None and self._screening is None:
                self._do(self._check_signature, waiting)
                self._finish_screening(waiting)
            else:
                self._screening = asyncio.create_task(
                    self._finish_in_order(self._screening, waiting, valid)
                )
        finally:
            # Schedule the others even if this batch failed.
            if self._arrived:
                asyncio.get_running_loop().call_soon(self._screen_some)

    async def _finish_in_order(
        self,
        earlier: asyncio.Task[None] | None,
        waiting: list[_Arrival],
        valid: Awaitable[bytes] | None,
    ) -> None:
        """Finish a batch after the earlier ones: of two handshakes of an ICE the later one is admitted last."""
        try:
            if valid is not None:
                for arrival, found in zip(waiting, await valid, strict=False):
                    arrival.verified = found == 1
            self._do(self._check_signature, waiting)
            if earlier is not None:
                await asyncio.wait([earlier])
            self._finish_screening(waiting)
        finally:
            if self._screening is asyncio.current_task():
                self._screening = None

    def _finish_screening(self, waiting: list[_Arrival]) -> None:
        self._do(self._check_claims, waiting)
        self._do(self._use_proof, waiting)

    def _do(
        self,
        step: Callable[[_Arrival], _Verdict | None],
        arrived: list[_Arrival],
    ) -> None:
        """Do one step of a whole batch."""
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

    def _open_token(self, arrival: _Arrival) -> Refused | None:
        if arrival.proven is not None:
            arrival.token = arrival.proven.secret
            return None
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
            return self.invalid_token(handshake.address)
        arrival.token, arrival.opened = token, opened
        return None

    def _read_proof(self, arrival: _Arrival) -> Refused | None:
        handshake = arrival.handshake
        # RFC 9449 section 4.3, check 1: at most one DPoP header.
        if len(handshake.proofs) != 1:
            detail = "There must be exactly one DPoP header"
            return Refused(refusal(RefusalCode.PROOF_INVALID, detail=detail), arrival.ice_name)
        signed = read(handshake.proofs[0])
        if isinstance(signed, Invalid):
            return _invalid_proof(signed.detail, arrival.ice_name)
        arrival.signed = signed
        return None

    def _check_signature(self, arrival: _Arrival) -> Refused | None:
        if not arrival.verified:
            fault = arrival.signed.signature.fault()
            if fault is not None:
                return _invalid_proof(fault, arrival.ice_name)
        return None

    def _check_claims(self, arrival: _Arrival) -> Refused | None:
        names, method, proven = self._public or arrival.handshake.local, "GET", arrival.proven
        if proven is not None:
            names, method = tuple(name + proven.suffix for name in names), proven.method
        proof = arrival.signed.proof(
            token=arrival.token.reveal(),
            urls=_normalised(names),  # cached, as there are few
            expected=" or ".join(names),
            method=method,
        )
        if isinstance(proof, Invalid):
            return _invalid_proof(proof.detail, arrival.ice_name)
        arrival.proof = proof
        return None

    def _use_proof(self, arrival: _Arrival) -> _Verdict:
        proof, opened, address = arrival.proof, arrival.opened, arrival.handshake.address
        if opened is None:
            return self.accept(proof, None, self.replays.accept) or proof
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
            return replayed(ice_name)
        if accept(proof, now, lease_time):
            return None
        wanted = refusal(RefusalCode.USE_DPOP_NONCE, nonce=self._nonces.issue(lease_time))
        return Refused(wanted, ice_name)

    def shared_id(self, proof: Proof) -> str:
        """The name under which the nodes of one database remember the proof; empty for a single gateway."""
        return proof_id(proof.thumbprint, proof.jti).hex() if self._shared else ""

    def invalid_token(self, address: str, ice_name: str | None = None) -> Refused:
        """`ice_name` only if the token was genuine and its ICE exists."""
        wait = self.count_attempt(address)
        if wait:
            code = RefusalCode.TOO_MANY_ATTEMPTS
            return Refused(refusal(code, retry_after=math.ceil(wait)), ice_name)
        return Refused(refusal(RefusalCode.TOKEN_INVALID), ice_name)

    def count_attempt(self, address: str) -> float:
        """Count a request without anything genuine; returns the seconds for which the address is refused."""
        return self._attempts.count(address, self._monotonic())


@lru_cache(64)
def _normalised(names: tuple[str, ...]) -> frozenset[Url]:
    return frozenset(filter(None, map(normalise, names)))


def _invalid_proof(detail: str, ice_name: str | None) -> Refused:
    sentence = detail[:1].upper() + detail[1:]
    return Refused(refusal(RefusalCode.PROOF_INVALID, detail=sentence), ice_name)


def replayed(ice_name: str | None) -> Refused:
    """The refusal of a proof that was used before."""
    used = refusal(RefusalCode.PROOF_INVALID, detail="The proof was used before", retry=True)
    return Refused(used, ice_name)


def _nonce_keys(keys: KeyStore, *, shared: bool) -> Callable[[], tuple[bytes, ...]]:
    """The keys of the nonces: nodes of one database derive them from the token keys, a single gateway makes one."""
    own = (secrets.token_bytes(32),)
    if not shared:
        return lambda: own
    return lambda: keys.derived(b"ice-gateway nonces") or own
