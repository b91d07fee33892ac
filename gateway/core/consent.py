"""The rules of consent: which kinds an ICE lets others than its tagged user send. Pure. Source: docs/protocol.md.

Others are admins, API tokens of others, pools, and schedules of others. `store.consent` has the same rule in SQL.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from client.protocol import OperationKind
from gateway.core.ice import OPERATIONS, IceType

MAX_READ: Final = 32
"""Entries of an ICE's list that are read; the others are ignored."""
FIRST_WAIT: Final = 5.0
"""Seconds in which others send nothing to an ICE that never said what it accepts."""

Accepts = frozenset[OperationKind] | None
"""The kinds that others may send; None for all."""

_ALLOWED: Final = {ice_type: frozenset(kinds) for ice_type, kinds in OPERATIONS.items()}
_NONE: Final[frozenset[OperationKind]] = frozenset()
_ENCODED: Final = msgspec.json.Decoder(list[str] | None)
_KINDS: Final = frozenset(kind.value for kind in OperationKind)
_known: Final[dict[frozenset[OperationKind], frozenset[OperationKind]]] = {}
"""One object for each set of kinds, so that many sessions share it; there are few sets."""


def accepts_of(kinds: Sequence[str] | None) -> Accepts:
    """The kinds in a message of an ICE; those that the gateway does not know are ignored."""
    if kinds is None:
        return None
    found = frozenset(OperationKind(kind) for kind in kinds[:MAX_READ] if kind in _KINDS)
    return _known.setdefault(found, found)


def kinds_in_order(accepts: frozenset[OperationKind]) -> list[OperationKind]:
    """The kinds in the order of `OperationKind`."""
    return [kind for kind in OperationKind if kind in accepts]


def accepts_to_text(accepts: Accepts) -> str:
    """What is stored: a JSON list, or `null`."""
    if accepts is None:
        return "null"
    return msgspec.json.encode(kinds_in_order(accepts)).decode()


@functools.lru_cache(maxsize=64)
def accepts_from_text(text: str | None) -> Accepts | UnsetType:
    """The inverse of `accepts_to_text`; UNSET for the NULL of an ICE that never said.

    Raises `msgspec.DecodeError`.
    """
    return UNSET if text is None else accepts_of(_ENCODED.decode(text))


def may_be_sent(
    ice_type: IceType,
    accepts: Accepts | UnsetType,
    open_for: float,
    *,
    by_tagged_user: bool,
) -> frozenset[OperationKind]:
    """The kinds that an ICE may be sent.

    Args:
        ice_type: a ci-cd ICE has no say.
        accepts: what the ICE said in this session, or else last; UNSET if it never said.
        open_for: seconds since the session was opened.
        by_tagged_user: whether its tagged user requested the operation.
    """
    allowed = _ALLOWED[ice_type]
    if by_tagged_user or ice_type is IceType.CI_CD:
        return allowed
    if accepts is UNSET:
        return allowed if open_for >= FIRST_WAIT else _NONE
    return allowed if accepts is None else allowed & accepts
