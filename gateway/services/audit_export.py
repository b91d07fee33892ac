"""The audit log as CSV, or as JSON Lines with every value that its digests cover.

Tested in tests/gateway/services/test_audit.py and tests/gateway/admin/test_pages.py.
"""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import msgspec

from gateway.core.audit_event import COLUMNS, LogEntry
from gateway.store.events import EventFilter, Events

_BATCH: Final = 500


def _json_lines(entries: Sequence[LogEntry]) -> bytes:
    documents = (
        dict(zip(COLUMNS, entry.columns(), strict=True)) | {"detail": entry.event.detail}
        for entry in entries
    )
    return b"".join(msgspec.json.encode(document) + b"\n" for document in documents)


def _csv(entries: Sequence[LogEntry]) -> bytes:
    return _csv_rows([[_cell(value) for value in entry.columns()] for entry in entries])


def _csv_rows(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    # A spreadsheet would run the text as a formula, and users choose names.
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


_FORMATS: Final[dict[str, tuple[str, bytes, Callable[[Sequence[LogEntry]], bytes]]]] = {
    "csv": ("text/csv; charset=utf-8", _csv_rows([COLUMNS]), _csv),
    "jsonl": ("application/jsonl", b"", _json_lines),
}
FORMATS: Final = tuple(_FORMATS)


def media_type(name: str) -> str:
    """The media type of a format (RFC 4180; https://jsonlines.org)."""
    return _FORMATS[name][0]


async def export(events: Events, where: EventFilter, name: str) -> AsyncIterator[bytes]:
    """The events of the filter in the format of this name, oldest first, a batch at a time."""
    _, heading, encode = _FORMATS[name]
    if heading:
        yield heading
    seq = 0
    while entries := await events.after(seq, _BATCH, where):
        yield encode(entries)
        seq = entries[-1].seq
