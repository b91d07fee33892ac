"""SQL of pauses, which are columns of `ice_tokens`.

Tested in tests/contract/test_pauses.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.core.audit_event import Event
from gateway.core.pause import Pause
from gateway.store import events
from gateway.store.engine import (
    AppendedEvent,
    Row,
    Transaction,
    as_json,
    columns_of,
    from_columns,
    is_in,
    rows_of,
)

COLUMNS: Final = ("pausedby", "pausedon", "pauseduntil", "pausednote", "pausedbyadmin")
"""The columns of a pause, in the order of the fields of `Pause`; all but the last are NULL without one."""
_FIELDS: Final = tuple(Pause.__dataclass_fields__)
_GIVEN: Final = rows_of(
    1, "name", "pausedby", "pausedon", "pauseduntil", "pausednote", "#pausedbyadmin"
)
_NONE: Final = (None, None, None, None, 0)


def paused(ice: str, now: int) -> str:
    """SQL for: the ICE of this alias is paused; `now` is the number of the parameter with the present."""
    return f"({ice}.pausedon IS NOT NULL AND coalesce({ice}.pauseduntil, '9') > ${now})"


def pause_from_row(row: Row) -> Pause | None:
    """A row of `COLUMNS`; None if the ICE was not paused. Raises `StoreUnavailable` for a damaged one."""
    *given, by_admin = row
    if given[0] is None:
        return None
    return from_columns(Pause, (*given, bool(by_admin)), "the pause of an ICE")


async def pauses_of(transaction: Transaction, names: Sequence[str]) -> dict[str, Pause | None]:
    """The pauses of the ICEs of these exact names, which may be over; locked until the transaction ends."""
    rows = await transaction.hold(
        f"SELECT ice_name, {', '.join(COLUMNS)} FROM ice_tokens WHERE {is_in('ice_name', 1)}"
        " ORDER BY lower(ice_name)",
        as_json(list(names)),
    )
    return {name: pause_from_row(tuple(row)) for name, *row in rows}


async def set_pauses(
    transaction: Transaction, changes: Sequence[tuple[str, Pause | None, Event]]
) -> list[AppendedEvent]:
    """Store the pause of each ICE, None to end it, with its event."""
    await transaction.run(
        f"UPDATE ice_tokens SET {', '.join(f'{name} = given.{name}' for name in COLUMNS)}"
        f" FROM {_GIVEN} WHERE ice_tokens.ice_name = given.name",
        as_json(
            [
                (name, *(_NONE if pause is None else columns_of(pause, _FIELDS)))
                for name, pause, _ in changes
            ]
        ),
    )
    return events.append(transaction, [event for *_, event in changes])
