"""A database that lacks what was committed is refused, whatever SQLite makes of it."""

from __future__ import annotations

import os
import shutil

import pytest

from gateway.core.audit_event import AuditAction, Event
from gateway.core.hash_chain import Head
from gateway.core.times import utc_now
from gateway.store import events
from gateway.store.engine import StoreRefused
from gateway.store.sqlite.commit_record import Committed, LogPosition, record_of
from gateway.store.sqlite.engine import open_sqlite
from tests.support.harness import ADMIN

pytestmark = pytest.mark.sqlite


async def write_event(engine, name):
    event = Event.of(utc_now(), ADMIN, AuditAction.ADD_USER, user=name)

    async def unit(transaction):
        events.append(transaction, [event])

    await engine.write(unit)


@pytest.fixture
async def killed(tmp_path):
    """A database as a kill leaves it: five events, all of them in the log."""
    source, folder = tmp_path / "source", tmp_path / "killed"
    source.mkdir()
    async with open_sqlite(source / "ice.db") as engine:
        for number in range(5):
            await write_event(engine, f"user-{number}")
        shutil.copytree(source, folder)
    return folder / "ice.db"


async def seqs(path):
    async with open_sqlite(path) as engine:
        return [seq for (seq,) in await engine.fetch("SELECT seq FROM ice_events ORDER BY seq")]


async def expect_refused(path, said):
    before = {
        one.name: one.read_bytes() for one in path.parent.iterdir() if one.suffix != ".db-shm"
    }
    for _ in range(2):  # the first time changes nothing
        with pytest.raises(StoreRefused, match=said):
            await seqs(path)
    after = {name: (path.parent / name).read_bytes() for name in before}
    assert after == before


async def test_what_a_kill_leaves_is_whole(killed):
    assert await seqs(killed) == [1, 2, 3, 4, 5]
    assert await seqs(killed) == [1, 2, 3, 4, 5], "also after its log was applied and removed"


@pytest.mark.parametrize("cut", [0.5, 0.9])
async def test_a_log_that_was_cut_is_refused_and_not_applied(killed, cut):
    wal = killed.with_name("ice.db-wal")
    os.truncate(wal, int(wal.stat().st_size * cut))
    await expect_refused(
        killed, r"lacks changes that were acknowledged: its log .*-wal can be read"
    )


async def test_a_flipped_bit_in_the_log_is_refused(killed):
    wal = killed.with_name("ice.db-wal")
    content = bytearray(wal.read_bytes())
    content[len(content) // 2] ^= 1
    wal.write_bytes(content)
    await expect_refused(killed, r"can be read up to frame \d+ of \d+; restore a backup")


async def test_a_lost_log_is_refused_until_the_record_is_removed(killed):
    async with open_sqlite(killed) as engine:
        await write_event(engine, "carol")
        old = killed.with_name("old.db")
        shutil.copy(killed, old)  # without what is in the log
        await write_event(engine, "dora")
    shutil.copy(old, killed)
    await expect_refused(killed, r"it ends at event 5, and event 7 was written")
    record_of(killed).unlink()
    assert await seqs(killed) == [1, 2, 3, 4, 5]


async def test_an_emptied_database_is_refused_and_a_removed_one_made_anew(killed):
    killed.with_name("ice.db-wal").unlink()
    os.truncate(killed, 0)
    await expect_refused(killed, "it is empty, and event 5 was written")
    killed.unlink()
    assert await seqs(killed) == []


async def test_another_log_of_events_is_refused(killed, tmp_path):
    other = tmp_path / "other.db"
    async with open_sqlite(other) as engine:
        for number in range(6):
            await write_event(engine, f"other-{number}")
    killed.with_name("ice.db-wal").unlink()
    shutil.copy(other, killed)
    await expect_refused(killed, "its event 5 is another one")


@pytest.mark.parametrize("content", [b"", b"half", b"\xff" * 160, None])
async def test_a_damaged_or_missing_record_demands_nothing(killed, content):
    if content is None:
        record_of(killed).unlink()
    else:
        record_of(killed).write_bytes(content)
    assert await seqs(killed) == [1, 2, 3, 4, 5]


async def test_a_record_that_cannot_be_written_stops_nothing(tmp_path):
    path = tmp_path / "ice.db"
    assert await seqs(path) == []
    record_of(path).unlink()
    record_of(path).mkdir()
    async with open_sqlite(path) as engine:
        await write_event(engine, "carol")
    assert await seqs(path) == [1]


@pytest.mark.parametrize("head", [None, Head(7, "ab" * 32)])
@pytest.mark.parametrize("log", [None, LogPosition(b"12345678", 9)])
def test_a_record_fits_into_a_sector_and_comes_back(head, log):
    committed = Committed(head, log)
    content = committed.encode()
    assert len(content) == 160
    assert Committed.decode(content) == committed
    for place in range(160):
        damaged = bytearray(content)
        damaged[place] ^= 1
        assert Committed.decode(bytes(damaged)) in (committed, Committed()), place
