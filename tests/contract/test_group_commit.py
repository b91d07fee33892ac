"""Units of work: grouped into transactions, each done or not, whoever fails or goes away meanwhile."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.store.engine import (
    Damaged,
    Part,
    StoreUnavailable,
    as_json,
    damaged,
    is_in,
    rows_of,
)
from tests.contract.domain import PATIENCE, RULE_BROKEN, Halt, an_event, append, refusing, soon

_GIVEN = f"SELECT name, name, role, '' FROM {rows_of(1, 'name', 'role')}"  # noqa: S608 - our own columns
_INSERT_MANY = f"INSERT INTO users (name, name_folded, role, createdon) {_GIVEN}"
_DELETE_MANY = f"DELETE FROM users WHERE {is_in('name', 1)}"  # noqa: S608 - our own columns
_INSERT = "INSERT INTO users (name, name_folded, role, createdon) VALUES ($1, $1, $2, '')"


def adding(*names, role="member", seen=None):
    """A unit that adds users; it puts the transaction in which it runs into `seen`."""

    async def unit(transaction):
        if seen is not None:
            seen.append(transaction)
        for name in names:
            await transaction.run(_INSERT, name, role)
        return names

    return unit


class Held(Halt):
    """A unit that stops half-way until it is let on."""

    async def __call__(self, transaction):
        await transaction.run(_INSERT, "half", "member")
        await self.stop()
        await transaction.run(_INSERT, "whole", "member")


async def users(engine):
    return {name for (name,) in await engine.fetch("SELECT name FROM users")} - {"alice"}


async def hold(engine):
    """Occupy the writer; returns the held unit and the task that asked for it."""
    held = Held()
    task = asyncio.create_task(engine.write(held))
    await soon(held.reached.wait(), "the start of a unit")
    return held, task


async def waiting(engine, *units):
    """Ask for all units while the writer is occupied."""
    tasks = [asyncio.create_task(engine.write(unit)) for unit in units]
    await asyncio.wait(tasks, timeout=0)
    return tasks


async def test_units_that_wait_share_one_transaction(engine):
    held, task = await hold(engine)
    seen: list = []
    tasks = await waiting(engine, *(adding(f"u{n}", seen=seen) for n in range(100)))
    held.go()
    answers = await soon(asyncio.gather(task, *tasks), "the end of all units")
    assert answers[1:] == [(f"u{n}",) for n in range(100)], "each asker was expected its own answer"
    assert len(seen) == 100
    assert len(set(map(id, seen))) == 1, "one transaction was expected for all that waited"
    assert len(await users(engine)) == 102


@pytest.mark.parametrize(
    ("role", "failure"), [("emperor", RULE_BROKEN), ("member", ValueError)], ids=["rule", "value"]
)
async def test_a_unit_that_fails_undoes_itself_only(engine, role, failure):
    async def failing(transaction):
        await adding("undone", "undone too")(transaction)
        await adding("x", role=role)(transaction)
        raise ValueError

    held, task = await hold(engine)
    tasks = await waiting(engine, adding("before"), failing, adding("after"))
    held.go()
    await soon(task, "the end of the unit that was held")
    with refusing(failure, "the unit that breaks off"):
        await soon(tasks[1], "the end of the failing unit")
    await soon(asyncio.gather(tasks[0], tasks[2]), "the end of the units beside it")
    assert await users(engine) == {"half", "whole", "before", "after"}

    with refusing(failure, "the same unit alone"):
        await engine.write(failing)
    await engine.write(adding("next"))
    assert await users(engine) == {"half", "whole", "before", "after", "next"}


class Adding:
    """A work that adds users together, `role` for each of them."""

    def __init__(self, role="member"):
        self.role = role
        self.seen = []

    async def __call__(self, transaction, names):
        self.seen.append(names)
        for name in names:
            await transaction.run(_INSERT, name, "emperor" if name == "nero" else self.role)
        return [name.upper() for name in names]


async def test_the_parts_of_a_work_are_done_together(engine):
    one, other = Adding(), Adding("admin")
    held, task = await hold(engine)
    tasks = await waiting(
        engine, Part(one, "a"), adding("b"), Part(other, "c"), Part(one, "d"), Part(other, "e")
    )
    held.go()
    answers = await soon(asyncio.gather(task, *tasks), "the end of all units")
    assert answers[1:] == ["A", ("b",), "C", "D", "E"], "each asker was expected its own answer"
    assert (one.seen, other.seen) == ([["a", "d"]], [["c", "e"]])
    assert {"a", "b", "c", "d", "e"} <= await users(engine)


async def test_a_part_that_fails_undoes_itself_only(engine):
    work = Adding()
    held, task = await hold(engine)
    tasks = await waiting(engine, *(Part(work, name) for name in ("a", "nero", "b")))
    held.go()
    await soon(task, "the end of the unit that was held")
    with refusing(RULE_BROKEN, "the part that breaks a rule"):
        await soon(tasks[1], "the end of the failing part")
    assert await soon(asyncio.gather(tasks[0], tasks[2]), "the parts beside it") == ["A", "B"]
    assert work.seen[0] == ["a", "nero", "b"]
    assert work.seen[-3:] == [["a"], ["nero"], ["b"]]
    assert await users(engine) == {"half", "whole", "a", "b"}


async def test_a_damaged_row_stops_only_who_reads_it(engine):
    async def reading(transaction):
        await adding("undone")(transaction)
        raise damaged("the entry of x", ValueError("no date"))

    held, task = await hold(engine)
    tasks = await waiting(engine, adding("before"), reading, Part(Adding(), "after"))
    held.go()
    await soon(task, "the end of the unit that was held")
    with refusing(Damaged, "the unit that reads the damaged row"):
        await soon(tasks[1], "the end of that unit")
    await soon(asyncio.gather(tasks[0], tasks[2]), "the end of the units beside it")
    assert await users(engine) == {"half", "whole", "before", "after"}
    assert engine.fault is None


async def test_a_work_without_a_result_for_each_part_changes_nothing(engine):
    async def forgetful(transaction, names):
        await transaction.run(_INSERT, names[0], "member")
        return []

    with refusing(RuntimeError, "a work that forgets a result"):
        await engine.write(Part(forgetful, "a"))
    held, task = await hold(engine)
    tasks = await waiting(engine, Part(forgetful, "b"), Part(forgetful, "c"))
    held.go()
    await soon(task, "the end of the unit that was held")
    for each in tasks:
        with refusing((RuntimeError, ValueError), "a work that forgets a result"):
            await soon(each, "the end of the part")
    assert await users(engine) == {"half", "whole"}


async def test_a_unit_whose_asker_goes_away_is_done_or_not_but_never_half(engine):
    held, task = await hold(engine)
    queued, failing, kept = await waiting(
        engine, adding("first", "second"), adding("undone", role="emperor"), adding("kept")
    )
    gone = (task, queued, failing)
    for asker in gone:
        asker.cancel()
    ends = await asyncio.gather(*gone, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError] * 3
    held.go()
    await soon(kept, "the end of the unit whose asker stayed")
    found = await users(engine)
    assert "kept" in found
    assert "undone" not in found
    for unit in ({"half", "whole"}, {"first", "second"}):
        assert unit <= found or not unit & found, f"{unit} was expected whole or not at all"


async def test_nobody_reads_what_is_not_committed(engine):
    async def unit(transaction):
        await adding("mine")(transaction)
        return await transaction.fetch("SELECT role FROM users WHERE name = $1", "mine")

    assert await engine.write(unit) == [("member",)], "a unit was expected to see its own rows"
    held, task = await hold(engine)
    for read in (engine.fetch, engine.look_up, engine.follow):
        rows = await soon(read("SELECT 1 FROM users WHERE name = 'half'"), "reading meanwhile")
        assert rows == [], f"{read} was expected to see committed rows alone"
    held.go()
    await soon(task, "the commit")
    assert {"half", "whole"} <= await users(engine)


async def test_a_commit_is_told_and_a_failure_is_not(engine):
    await engine.has_changed()
    engine.changed.clear()
    with refusing(RULE_BROKEN, "a unit that breaks a rule"):
        await engine.write(adding("x", role="emperor"))
    # Not `changed`: on PostgreSQL the notification of an earlier commit may come late and set it.
    assert not await engine.has_changed()
    engine.changed.clear()
    await append(engine, an_event())
    assert engine.changed.is_set(), "a commit of an event was expected to wake this process"


async def test_counts_are_of_rows_changed(engine):
    async def unit(transaction):
        added = await transaction.run(_INSERT_MANY, as_json([("a", "member"), ("b", "admin")]))
        none = await transaction.run(_DELETE_MANY, as_json([]))
        changed = await transaction.run("UPDATE users SET role = $1 WHERE name < 'b'", "auditor")
        missed = await transaction.run("DELETE FROM users WHERE name = $1", "nobody")
        return added, none, changed, missed

    assert await engine.write(unit) == (2, 0, 2, 0)


async def test_closing_finishes_what_was_begun(open_store):
    async with open_store(serving=True) as engine:
        held, task = await hold(engine)
        [queued] = await waiting(engine, adding("queued"))
        closing = asyncio.create_task(engine.close())
        await asyncio.wait([closing], timeout=0)
        held.go()
        await asyncio.wait_for(asyncio.gather(task, queued, closing), PATIENCE)
        for late in (engine.write(adding("late")), engine.fetch("SELECT 1")):
            with refusing(StoreUnavailable, "work after closing"):
                await late
    async with open_store(serving=True) as engine:
        assert await users(engine) == {"half", "whole", "queued"}


async def test_a_unit_that_waits_for_anything_else_is_refused(open_store):
    """It would stop the thread of SQLite, and with it every other write."""

    async def waiting_for_time(transaction):
        await adding("half")(transaction)
        await asyncio.sleep(0)

    async with open_store(serving=True) as engine:
        if engine.shared:
            return  # a unit on PostgreSQL runs on the loop
        with refusing(RuntimeError, "a unit that waits") as why:
            await engine.write(waiting_for_time)
        assert why.text == "a unit waits for something other than its transaction"
        await engine.write(adding("next"))
        assert await users(engine) == {"next"}


def test_a_parameter_of_rows_holds_no_nul():
    rows = [(1, "a\0b\n", None), ["\\u0000 \\\0", True], 0.5]
    kept = [[1, "a\ufffdb\n", None], ["\\u0000 \\\ufffd", True], 0.5]
    assert json.loads(as_json(rows)) == kept
