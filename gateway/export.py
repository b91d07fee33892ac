"""The audit log for other programs: as CSV, or as JSON Lines with all that its digests are made of."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import msgspec

from gateway.event import Entry, detail_text
from gateway.store.events import EventFilter, Events
from gateway.times import to_text

_BATCH: Final = 500
_FIELDS: Final = (
    "seq",
    "at",
    "actor",
    "via",
    "address",
    "action",
    "ice_name",
    "generation",
    "detail",
    "previous",
)


def _values(entry: Entry) -> dict[str, Any]:
    event = entry.event
    return dict(
        zip(
            _FIELDS,
            (
                entry.seq,
                to_text(event.at),
                event.actor.name,
                event.actor.via.value,
                event.actor.address,
                event.action,
                event.ice_name,
                event.generation,
                event.detail,
                entry.previous,
            ),
            strict=True,
        )
    )


def _json_lines(entries: Sequence[Entry]) -> bytes:
    return b"".join(msgspec.json.encode(_values(entry), order=None) + b"\n" for entry in entries)


def _csv(entries: Sequence[Entry]) -> bytes:
    rows = [_values(entry) | {"detail": detail_text(entry.event.detail)} for entry in entries]
    return _csv_rows([[_cell(value) for value in row.values()] for row in rows])


def _csv_rows(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    # A spreadsheet would take it for a formula: names are chosen by people.
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


_FORMATS: Final[dict[str, tuple[str, bytes, Callable[[Sequence[Entry]], bytes]]]] = {
    "csv": ("text/csv; charset=utf-8", _csv_rows([_FIELDS]), _csv),
    "jsonl": ("application/jsonl", b"", _json_lines),
}
FORMATS: Final = tuple(_FORMATS)


def media_type(name: str) -> str:
    """The media type of a format (RFC 4180; https://jsonlines.org)."""
    return _FORMATS[name][0]


async def export(events: Events, where: EventFilter, name: str) -> AsyncIterator[bytes]:
    """The events of the filter in format `name`, oldest first, a batch at a time."""
    _, heading, encode = _FORMATS[name]
    if heading:
        yield heading
    seq = 0
    while entries := await events.after(seq, _BATCH, where):
        yield encode(entries)
        seq = entries[-1].seq
