"""What an ICE wrote while it worked is kept in order, the newest part of it, and counted to the byte."""

from __future__ import annotations

import pytest

from client.protocol import OperationKind
from gateway.core.operation import Move, Operation
from gateway.store import operation_logs, operations
from gateway.store.engine import Transaction
from gateway.store.operation_logs import PIECE, OperationLogs
from tests.contract.domain import NOW, add_registered, minutes

LOG_KEPT = 2 * PIECE
KEPT = "SELECT kept FROM ice_operations WHERE id = $1"
STORED = "SELECT start, bytes, octet_length(text) FROM ice_operation_logs WHERE operation = $1 ORDER BY start"


@pytest.fixture
async def ice(engine):
    await add_registered(engine)
    await add_registered(engine, "lab-2")


@pytest.fixture
def logs(engine):
    return OperationLogs(engine.fetch, LOG_KEPT)


async def running(engine, name: str = "one", ice_name: str = "lab-1") -> Operation:
    new = Operation.request(
        name, ice_name, OperationKind.EXECUTE, b"{}", requested_by="root", now=NOW
    )

    async def unit(transaction: Transaction) -> Operation:
        await operations.insert(transaction, new)
        return await moved(transaction, new, Move.SEND)

    return await engine.write(unit)


async def moved(transaction: Transaction, old: Operation, move: Move) -> Operation:
    new = old.moved(move, NOW)
    assert await operations.replace(transaction, old, new)
    return new


async def append(engine, log_kept: int = LOG_KEPT, **texts: str) -> None:
    await engine.write(lambda tx: operation_logs.append(tx, texts, log_kept))


async def whole(logs: OperationLogs, name: str = "one", place: int | None = None) -> str:
    begin, end = await logs.extent(name)
    place, texts = begin if place is None else place, []
    while place < end:
        text, place = await logs.read(name, place)
        texts.append(text)
    return "".join(texts)


async def test_a_log_is_read_as_it_was_appended(engine, ice, logs):
    await running(engine)
    await running(engine, "two", "lab-2")
    await append(engine, one="a é ", two="x")
    await append(engine, one="\U0001f600\n", two="y", three="nothing of this name runs")
    assert await whole(logs) == "a é \U0001f600\n"
    assert await whole(logs, "two") == "xy"
    assert await whole(logs, "three") == ""
    assert await whole(logs, place=5) == "\U0001f600\n", "a reader did not go on where it was"


async def test_short_texts_do_not_take_a_row_each(engine, ice, logs):
    await running(engine)
    for number in range(20):
        await append(engine, one=f"{number:03}" * 200)
    rows = await engine.fetch(STORED, "one")
    assert len(rows) == 3, rows
    assert all(size == length for _, size, length in rows), rows
    assert await whole(logs) == "".join(f"{number:03}" * 200 for number in range(20))


@pytest.mark.parametrize("char", ["a", "é", "€", "\U0001f600"])
async def test_the_newest_part_is_kept_and_counted(engine, ice, logs, char):
    await running(engine)
    before = (await engine.fetch(KEPT, "one"))[0][0]
    written = ""
    for number in range(6):
        text = f"{number}" + char * (50_000 // len(char.encode()))
        written += text
        await append(engine, one=text)
    shown = (await whole(logs)).encode()
    assert written.encode().endswith(shown), "the end of the log is not what was written"
    assert LOG_KEPT - 3 <= len(shown) <= LOG_KEPT, "it was not cut to the newest whole characters"
    rows = await engine.fetch(STORED, "one")
    stored = sum(size for _, size, _ in rows)
    assert stored < LOG_KEPT + PIECE
    assert max(size for _, size, _ in rows) <= PIECE
    assert [(stored + before,)] == await engine.fetch(KEPT, "one")


async def test_what_comes_after_the_end_is_ignored(engine, ice, logs):
    work = await running(engine)
    await append(engine, one="before")
    await engine.write(lambda tx: moved(tx, work, Move.SUCCEED))
    await append(engine, one="after")
    assert await whole(logs) == "before"


async def test_a_log_goes_with_its_operation(engine, ice, logs):
    work = await running(engine)
    await append(engine, one="a" * 100)
    await engine.write(lambda tx: moved(tx, work, Move.SUCCEED))
    newer = await running(engine, "newer")
    await append(engine, newer="b" * 100)
    done = await engine.write(lambda tx: moved(tx, newer, Move.SUCCEED))
    await engine.write(lambda tx: operations.trim(tx, done, 150))
    assert [await whole(logs), await whole(logs, "newer")] == ["", "b" * 100]
    assert await engine.fetch(KEPT, "one") == [(0,)]
    await engine.write(lambda tx: operations.forget(tx, minutes(1), 10))
    assert await engine.fetch("SELECT count(*) FROM ice_operation_logs") == [(0,)]
