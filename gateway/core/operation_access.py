"""Who may see an operation, and how much of it, and who may cancel it. Pure. Source: docs/api.md."""

from __future__ import annotations

from dataclasses import replace

from gateway.core.ice import Ice
from gateway.core.operation import Operation
from gateway.core.roles import Caller, Role


def seen(caller: Caller, operation: Operation, ice: Ice | None) -> Operation | None:
    """What the caller sees of an operation, or None for nothing; `ice` is the one that has it.

    The token of a pool sees what it requested itself.
    """
    if caller.pool is not None:
        return operation if operation.token == caller.token else None
    if caller.grants.sees_all:
        return operation
    if ice is None or operation.former_user is not None or not caller.sees(ice):
        return None
    return listed(caller, operation)


def listed(caller: Caller, operation: Operation) -> Operation:
    """What the caller sees of an operation that a listing may show them.

    The user of an ICE sees that an operation of a pool runs on it, but not what goes in and what comes out.
    """
    if sees_contents(caller, operation):
        return operation
    return replace(operation, params=b"null", progress=None, result=None, error=None)


def sees_contents(caller: Caller, operation: Operation) -> bool:
    """Whether a caller who sees the operation sees what goes in and what comes out, its log included."""
    return operation.pool is None or caller.grants.sees_all or caller.pool is not None


def may_cancel(caller: Caller, operation: Operation, ice: Ice | None) -> bool:
    """Whether a caller who sees the operation may cancel it."""
    if caller.pool is not None:
        return operation.token == caller.token
    if operation.pool is not None:
        return operates_pools(caller)
    return ice is not None and caller.operates(ice)


def operates_pools(caller: Caller) -> bool:
    """Whether the caller may send operations to every pool."""
    return caller.role is Role.ADMIN and caller.grants.acts
