"""SQL of `ice_instances`: which instances of each ICE said hello, for `core.duplicates`.

A row is written only when the instance, its address or its host name changes.

Tested in tests/contract/test_duplicates.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec
from msgspec.structs import replace

from gateway.core.duplicates import Copy, History
from gateway.core.times import from_text_or_none, to_text, to_text_or_none
from gateway.store.engine import Transaction, as_json, is_in, rows_of

_NAMES: Final = (
    *("ice_name", "#generation", "~opened", "seenon"),
    *("newest", "superseded", "returnedon", "loggedon"),
)
_COLUMNS: Final = ", ".join(name.lstrip("#~") for name in _NAMES)
_GIVEN: Final = rows_of(1, *_NAMES)
_REPLACED: Final = ", ".join(
    f"{name} = excluded.{name}" for name in _COLUMNS.split(", ") if name != "ice_name"
)


class Greeting(msgspec.Struct, frozen=True, gc=False):
    """A hello that named an instance; `reading` is that of its session."""

    ice_name: str
    generation: int
    reading: float
    at: datetime
    copy: Copy


class Instances(msgspec.Struct, frozen=True, gc=False):
    """What is stored of an ICE.

    `newest` is the reading and the time of the newest hello. `history` is None if there is none of this
    generation. `logged` is the time of the last event about the ICE.
    """

    generation: int
    newest: tuple[float, str] = (0.0, "")
    history: History | None = None
    logged: datetime | None = None


async def changed(transaction: Transaction, greetings: Sequence[Greeting]) -> list[str]:
    """The ICEs of which a hello does not say what is stored."""
    rows = await transaction.fetch(
        f"SELECT DISTINCT given.name FROM {rows_of(1, 'name', '#generation', 'newest')}"
        " LEFT JOIN ice_instances i ON i.ice_name = given.name"
        " WHERE i.ice_name IS NULL OR i.newest <> given.newest OR i.generation <> given.generation",
        as_json([(one.ice_name, one.generation, _text(one.copy)) for one in greetings]),
    )
    return [name for (name,) in rows]


async def read(transaction: Transaction, names: Sequence[str]) -> dict[str, Instances]:
    """What is stored of these ICEs, whose entries are locked until the transaction ends."""
    given = as_json(list(names))
    entries = await transaction.hold(
        f"SELECT ice_name, generation FROM ice_tokens WHERE {is_in('ice_name', 1)} ORDER BY ice_name",
        given,
    )
    rows = await transaction.fetch(
        f"SELECT {_COLUMNS} FROM ice_instances WHERE {is_in('ice_name', 1)}", given
    )
    found = {name: Instances(generation) for name, generation in entries}
    for name, generation, opened, seen, newest, superseded, returned, logged in rows:
        if name not in found:
            continue
        standing = found[name].generation
        try:
            history = History(
                msgspec.json.decode(newest, type=Copy),
                msgspec.json.decode(superseded, type=tuple[str, ...]),
                from_text_or_none(returned),
            )
            known = Instances(standing, (opened, seen), history, from_text_or_none(logged))
        except ValueError:
            continue  # a damaged row is replaced: presence must not wait for a person
        found[name] = known if generation == standing else replace(known, history=None)
    return found


async def write(transaction: Transaction, known: dict[str, Instances]) -> None:
    """Store what is known of each ICE; each has a history."""
    await transaction.run(
        f"INSERT INTO ice_instances ({_COLUMNS}) SELECT {_COLUMNS} FROM {_GIVEN} WHERE TRUE"
        f" ON CONFLICT (ice_name) DO UPDATE SET {_REPLACED}",
        as_json(
            [
                (
                    *(name, one.generation, *one.newest),
                    *(_text(history.newest), _text(history.superseded)),
                    *(to_text_or_none(history.returned), to_text_or_none(one.logged)),
                )
                for name, one in known.items()
                for history in [one.history]
                if history is not None
            ]
        ),
    )


async def mark(transaction: Transaction, found: dict[str, datetime]) -> None:
    """Keep with these ICEs when two copies of them were last found."""
    await transaction.run(
        f"UPDATE ice_tokens SET duplicateon = given.at FROM {rows_of(1, 'name', 'at')}"
        " WHERE ice_tokens.ice_name = given.name AND coalesce(duplicateon, '') < given.at",
        as_json([(name, to_text(at)) for name, at in found.items()]),
    )


def _text(value: Copy | tuple[str, ...]) -> str:
    return msgspec.json.encode(value).decode()
