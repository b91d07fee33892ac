"""What is kept of operations is counted as it changes, to the byte."""

from __future__ import annotations

import sqlite3

import pytest

from client.protocol import OperationKind
from gateway.core.operation import Move, Operation, reason
from gateway.store import operations
from gateway.store.engine import Transaction
from gateway.store.sqlite.engine import open_sqlite
from gateway.store.sqlite.migrate import released
from tests.contract.domain import NOW, add_registered

PARAMS = '"né"'.encode()
PROGRESS = '{"message":"é"}'.encode()
RESULT = '"ÿ"'.encode()
ERROR = reason("cancelled", "é")


def requested(name: str) -> Operation:
    return Operation.request(
        name, "lab-1", OperationKind.EXECUTE, PARAMS, requested_by="root", now=NOW
    )


@pytest.fixture
async def ice(engine):
    return await add_registered(engine)


async def add(engine, operation: Operation, *moves: Move, **came_to) -> Operation:
    """The operation after these moves; before the last of them it has told its progress."""

    async def unit(transaction: Transaction) -> Operation:
        old = operation
        await operations.insert(transaction, old)
        for move in moves:
            if move is moves[-1]:
                await operations.set_progress(transaction, [(old.id, PROGRESS)])
            new = old.moved(move, NOW, **(came_to if move is moves[-1] else {}))
            assert await operations.replace(transaction, old, new)
            old = new
        return old

    return await engine.write(unit)


async def kept(engine) -> dict[str, int]:
    return dict(await engine.fetch("SELECT id, kept FROM ice_operations"))


async def test_what_is_kept_is_counted_in_bytes(engine, ice):
    await add(engine, requested("queued"))
    await add(engine, requested("sent"), Move.SEND)
    assert await kept(engine) == dict.fromkeys(("queued", "sent"), len(PARAMS))
    await engine.write(lambda tx: operations.cancel_all(tx, ["lab-1"], NOW, ERROR))
    assert await kept(engine) == {
        "queued": len(PARAMS) + len(ERROR),
        "sent": len(PARAMS) + len(ERROR),
    }
    lost = await add(engine, requested("lost"), Move.SEND, Move.LOSE, error=ERROR)
    whole = len(PARAMS) + len(PROGRESS)
    assert (await kept(engine))["lost"] == whole + len(ERROR)
    done = lost.moved(Move.SUCCEED, NOW, result=RESULT)
    await engine.write(lambda tx: operations.replace(tx, lost, done))
    assert (await kept(engine))["lost"] == whole + len(RESULT)


async def test_progress_counts_where_all_are_cancelled(engine, ice):
    await add(engine, requested("sent"), Move.SEND)

    async def unit(transaction: Transaction) -> None:
        await operations.set_progress(transaction, [("sent", PROGRESS)])
        await operations.cancel_all(transaction, ["lab-1"], NOW, ERROR)

    await engine.write(unit)
    assert await kept(engine) == {"sent": len(PARAMS) + len(PROGRESS) + len(ERROR)}


async def test_what_was_there_before_is_counted_by_the_migration(tmp_path):
    path = tmp_path / "ice.db"
    async with open_sqlite(path, steps=released()[:8]):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.executemany(
            "INSERT INTO ice_operations (id, ice_name, kind, params, state, requested_by, created,"
            " deadline, sent, finished, progress, result)"
            " VALUES (?, 'lab-1', 'execute', ?, ?, 'root', 't', 't', 't', ?, ?, ?)",
            [
                ("runs", PARAMS.decode(), "running", None, PROGRESS.decode(), None),
                ("done", PARAMS.decode(), "succeeded", "t", PROGRESS.decode(), RESULT.decode()),
            ],
        )
    connection.close()

    async with open_sqlite(path, tell=lambda _: None) as engine:
        assert await kept(engine) == {
            "runs": len(PARAMS),
            "done": len(PARAMS) + len(PROGRESS) + len(RESULT),
        }
