"""The JSON objects of operations, beside those of `services.schemas`.

Tested in tests/gateway/admin/api/test_operations.py.
"""

from __future__ import annotations

from typing import Any

import msgspec

from client.protocol import JsonTooComplex, OperationKind, check_json
from gateway.core.operation import Operation, State, Waits
from gateway.services.schemas import Time, described


class ProgressDocument(msgspec.Struct):
    """The progress of an operation as the ICE reported it; `fraction` is from 0 to 1."""

    fraction: float | None
    message: str | None
    data: msgspec.Raw | None
    at: Time


class OperationDocument(msgspec.Struct, kw_only=True):
    """An operation. `error` comes from the ICE, or says why the gateway ended the operation.

    `params`, `progress` and `result` of a finished operation are null once they made room for newer ones. `ice_name`
    is null until an ICE of the pool is chosen. `waits` says why a queued operation is not sent.
    """

    id: str
    ice_name: str | None
    pool: str | None
    schedule: str | None
    waits: Waits | None
    kind: OperationKind
    params: Any
    state: State
    requested_by: str
    created: Time
    run_at: Time | None
    deadline: Time
    sent: Time | None
    finished: Time | None
    progress: ProgressDocument | None
    result: Any
    error: Any


class OperationPage(msgspec.Struct):
    """Operations, newest first; `next` is the cursor of the next page, null at the end."""

    items: list[OperationDocument]
    next: str | None


class OperationState(msgspec.Struct):
    """News of an operation: its state now, the times of that, and why it waits if it is queued."""

    id: str
    ice_name: str | None
    kind: OperationKind
    state: State
    sent: Time | None
    finished: Time | None
    waits: Waits | None = None


def operation_document(operation: Operation, waits: Waits | None = None) -> OperationDocument:
    """Describe an operation; JSON values are kept byte by byte, except where `_readable` gives null."""
    return described(
        OperationDocument,
        operation,
        waits=waits,
        params=_readable(operation.params),
        progress=progress_document(operation),
        result=_readable(operation.result),
        error=_readable(operation.error),
    )


class _StoredProgress(msgspec.Struct):
    fraction: float | None
    message: str | None
    data: msgspec.Raw
    at: str


def progress_document(operation: Operation) -> ProgressDocument | None:
    """Describe the progress of an operation, if the ICE has reported any that is readable."""
    if operation.progress is None:
        return None
    try:
        stored = msgspec.json.decode(operation.progress, type=_StoredProgress)
    except (msgspec.DecodeError, RecursionError):  # from an older version without bounds
        return None
    return ProgressDocument(
        stored.fraction, stored.message, _readable(bytes(stored.data)), stored.at
    )


def _readable(value: bytes | None) -> msgspec.Raw | None:
    """Stored JSON, or null for JSON from an older version that common parsers cannot read.

    One value with 1,000 levels, or a number of 5,000 digits, would make a whole listing unreadable.
    """
    if value is None:
        return None
    try:
        check_json(value)
    except JsonTooComplex:
        return None
    return msgspec.Raw(value)
