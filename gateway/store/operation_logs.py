"""SQL of `ice_operation_logs`: what ICEs wrote while they worked, the newest part of each operation's.

A place in a log is the number of bytes of UTF-8 before it, with those that are not kept any more. So a reader goes on
where it was, whatever was appended or deleted meanwhile.

Tested in tests/contract/test_operation_logs.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from gateway.store.engine import Fetch, Transaction, as_json, is_in, rows_of
from gateway.store.operations import IS_ACTIVE

PIECE: Final = 65_536
"""Maximum bytes of a piece."""
_SMALL: Final = 4_096
"""Bytes below which the last piece is continued; otherwise a log of short lines would have too many rows."""
_PIECES: Final = 16
"""Pieces that are read at a time."""


async def append(transaction: Transaction, texts: Mapping[str, str], log_kept: int) -> None:
    """Append a text to the log of each operation, by id, if the ICE still works on it.

    Of each log the newest `log_kept` bytes are kept, and less than a piece more. All that is stored counts for what
    the operation's ICE or pool keeps.
    """
    # Locked before the ends are read, and in one order, so that two nodes never wait for each other.
    held = await transaction.hold(
        f"SELECT id FROM ice_operations WHERE {is_in('id', 1)} AND {IS_ACTIVE} ORDER BY id",
        as_json(list(texts)),
    )
    if not held:
        return
    last = await transaction.fetch(
        "SELECT id, number, start, bytes FROM ice_operation_logs JOIN (SELECT id,"
        " (SELECT max(start) FROM ice_operation_logs WHERE operation = id) AS last"
        f" FROM ice_operations WHERE {is_in('id', 1)}) AS found ON operation = id AND start = last",
        as_json([operation for (operation,) in held]),
    )
    found = {operation: piece for operation, *piece in last}
    continued: list[tuple[int, int, str]] = []
    added: list[tuple[str, int, int, str]] = []
    given_up: list[tuple[str, int]] = []
    grown: Counter[str] = Counter()
    for (operation,) in held:
        # A new log begins as if a full piece ended there.
        number, start, size = found.get(operation, (0, -PIECE, PIECE))
        end = begin = start + size
        room = PIECE - size if size < _SMALL else 0
        for text, length in _pieces(texts[operation], room or PIECE):
            if room:
                continued.append((number, length, text))
                room = 0
            else:
                added.append((operation, end, length, text))
            end += length
        grown[operation] = end - begin
        if end > log_kept:
            given_up.append((operation, end - log_kept))
    if continued:
        await transaction.run(
            "UPDATE ice_operation_logs SET text = ice_operation_logs.text || given.text,"
            f" bytes = ice_operation_logs.bytes + given.bytes FROM {rows_of(1, '#number', '#bytes', 'text')}"
            " WHERE ice_operation_logs.number = given.number",
            as_json(continued),
        )
    if added:
        await transaction.run(
            "INSERT INTO ice_operation_logs (operation, start, bytes, text)"
            f" SELECT operation, start, bytes, text FROM {rows_of(1, 'operation', '#start', '#bytes', 'text')}",
            as_json(added),
        )
    if given_up:
        for operation, size in await transaction.fetch(
            f"DELETE FROM ice_operation_logs WHERE number IN (SELECT number FROM {rows_of(1, 'id', '#kept_from')}"
            " JOIN ice_operation_logs ON operation = id AND start < kept_from AND start + bytes <= kept_from)"
            " RETURNING operation, bytes",
            as_json(given_up),
        ):
            grown[operation] -= size
    await transaction.run(
        f"UPDATE ice_operations SET kept = kept + given.bytes FROM {rows_of(1, 'id', '#bytes')}"
        " WHERE ice_operations.id = given.id",
        as_json(list(grown.items())),
    )


def _pieces(text: str, first: int) -> list[tuple[str, int]]:
    """The text in pieces of whole characters, the first of at most `first` bytes, and the bytes of each."""
    data, begin, room = text.encode(), 0, first
    pieces = []
    while begin < len(data):
        end = begin + room
        while end < len(data) and data[end] & 0xC0 == 0x80:  # noqa: PLR2004 - within a character
            end -= 1
        pieces.append((data[begin:end].decode(), len(data[begin:end])))
        begin, room = end, PIECE
    return pieces


class OperationLogs:
    """Reads the table, with an engine's `fetch`. Of each log the newest `log_kept` bytes count."""

    def __init__(self, fetch: Fetch, log_kept: int) -> None:
        self._fetch = fetch
        self._log_kept = log_kept

    async def extent(self, operation_id: str) -> tuple[int, int]:
        """Where the kept part of a log begins and ends."""
        [(begin, end)] = await self._fetch(
            "SELECT coalesce(min(start), 0), coalesce(max(start + bytes), 0) FROM ice_operation_logs"
            " WHERE operation = $1",
            operation_id,
        )
        return max(begin, end - self._log_kept), end

    async def read(self, operation_id: str, place: int) -> tuple[str, int]:
        """The text from `place` on, from a whole character on and at most `_PIECES` pieces, and the place after it.

        The text is empty at the end of the log.
        """
        rows = await self._fetch(
            "SELECT start, text FROM ice_operation_logs WHERE operation = $1 AND start > $2 AND start + bytes > $3"
            f" ORDER BY start LIMIT {_PIECES}",
            operation_id,
            place - PIECE,
            place,
        )
        data = b"".join(text.encode() for _, text in rows)
        if not rows:
            return "", place
        start = rows[0][0]
        # What is cut is the rest of a character.
        return data[max(0, place - start) :].decode(errors="ignore"), start + len(data)
