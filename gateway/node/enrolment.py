"""Checks the secret and the proof of a machine that enrols, without a database; shares what handshakes count.

Tested in tests/gateway/web/test_enrolment_endpoint.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from client.protocol import EnrolmentCode, RefusalCode
from gateway.core import enrolment as rules
from gateway.core.problems import Problem, refusal
from gateway.core.secret import Secret
from gateway.node.admission import Admission
from gateway.node.verdict import Handshake, Refused
from gateway.store.key_file import KeyStore

_SCHEME: Final = "bearer "


class Machine(msgspec.Struct, frozen=True, gc=False):
    """A machine with a secret that may be genuine and a good proof.

    `proof` names the proof, for nodes that share a database; otherwise it is empty.
    """

    key_id: str
    secret: Secret
    thumbprint: str
    address: str
    proof: str


class EnrolmentScreen:
    """Decides which requests may touch the database."""

    def __init__(self, admission: Admission, keys: KeyStore) -> None:
        self._admission = admission
        self._keys = keys

    async def check(self, request: Handshake, method: str, suffix: str) -> Machine | Problem:
        """Open the secret and check the proof for `method` on the URL of handshakes with this `suffix`."""
        secret = _secret(request.authorizations)
        key_id = None if secret is None else rules.id_of(secret)
        if secret is None or key_id is None or not self._keys.made_id(key_id):
            return self.refuse_secret(request.address)
        screening = self._admission.screening
        proof = await screening.prove(request, secret, method, suffix)
        if isinstance(proof, Refused):
            return proof.problem
        refused = self._admission.refuse_all(None)
        if refused is not None:
            return refused.problem
        name = screening.shared_id(proof)
        return Machine(key_id, secret, proof.thumbprint, request.address, name)

    def refuse_secret(self, address: str) -> Problem:
        """The refusal of a secret that this gateway did not issue; it counts as a handshake without a token."""
        wait = self._admission.screening.count_attempt(address)
        if wait:
            return refusal(RefusalCode.TOO_MANY_ATTEMPTS, retry_after=math.ceil(wait))
        return refusal(EnrolmentCode.KEY_INVALID)


def _secret(authorizations: Sequence[str]) -> Secret | None:
    """The bearer's secret (RFC 6750 section 2.1), if there is exactly one."""
    secrets = [
        value[len(_SCHEME) :].strip()
        for value in authorizations
        if value[: len(_SCHEME)].lower() == _SCHEME
    ]
    return Secret(secrets[0]) if len(secrets) == 1 else None
