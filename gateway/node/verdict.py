"""The values of an admission: a handshake, what the checks before the database make of it, and the verdict.

Tested in tests/gateway/node/test_admission.py.
"""

from __future__ import annotations

import msgspec

from gateway.core.dpop import Proof
from gateway.core.ice import Ice
from gateway.core.problems import Problem
from gateway.core.tokens import OpenedToken, RetiredToken
from gateway.store.ice_loader import Reading


class Handshake(msgspec.Struct, frozen=True, gc=False):
    """All values of the two headers, the client's address, and the URLs of the local socket.

    `local` is used only without `public_url`.
    """

    authorizations: tuple[str, ...]
    proofs: tuple[str, ...]
    address: str
    local: tuple[str, ...]


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A handshake with a genuine token and a good proof, whose ICE is still to be read.

    `reading` is set if the ICE was read to find its name.
    """

    token: OpenedToken
    thumbprint: str
    address: str
    proof: str
    reading: Reading | None = None


class Unrecognised(msgspec.Struct, frozen=True, gc=False):
    """A handshake with a good proof and a token of a retired key, which may be genuine."""

    token: RetiredToken
    proof: Proof
    address: str


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """The ICE that is admitted: `seq` is the newest event it reflects, `at` the monotonic time of the read.

    `reading` is the number of the look-up that read it, if several nodes share the database.
    """

    ice: Ice
    seq: int
    at: float
    reading: float


class Refused(msgspec.Struct, frozen=True, gc=False):
    """A refusal; admins see `ice_name`, which is set only if the token was genuine."""

    problem: Problem
    ice_name: str | None = None
