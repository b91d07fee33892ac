"""Cron expressions: refused in one line, or due exactly when brute force finds them due.

The first byte of an input chooses a zone and a day when its clocks change, the next two a minute around it; the rest
is the expression.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from gateway.core.cron import MAX_CRON, Cron
from gateway.core.operation import NotValid
from tests.fuzz.target import Target, require
from tests.support.brute_cron import SPANS, brute_force, real_minutes

_FEW = 200
"""Instants that are compared one by one."""


def read(expression: str, zone: str, after: datetime, until: datetime) -> Any:
    """The instants of an expression, the last one, and one from long before. Raises `NotValid`."""
    cron = Cron.parse(expression, zone)
    found: list[datetime] = []
    for moment in cron.all_after(after):
        if moment > until or len(found) == _FEW:
            break
        found.append(moment)
    early = after - timedelta(days=150)
    return found, cron.newest(after, until), cron.next_after(early), cron.in_words()


def check(data: bytes, product: Any) -> None:
    """See the module."""
    head, expression = data[:3].ljust(3, b"\0"), data[3:].decode(errors="surrogateescape")
    zone, day = SPANS[head[0] % len(SPANS)]
    minutes = real_minutes(zone, day)
    # Late enough that brute force has seen all changes that count.
    after = minutes[60 + (head[1] << 8 | head[2]) % 4000][0]
    until = minutes[-1][0]
    try:
        found, newest, early, words = product(expression, zone, after, until)
    except NotValid as error:
        require(error.field == "cron", f"{error.field}: {error}")
        require(len(str(error)) < 400, f"{len(str(error))} characters of reason")
        return
    require(len(expression) <= MAX_CRON and expression.isascii(), f"{expression!r} was taken")
    due = [one for one in brute_force(expression, zone, day) if one > after]
    require(found == due[:_FEW], f"{expression} in {zone} after {after}: {found}, not {due[:_FEW]}")
    require(newest == (due[-1] if due else None), f"{expression} in {zone}: the last is {newest}")
    if due:
        require(early is not None and early <= due[0], f"{expression} in {zone}: first {early}")
    require(words.isprintable() and 1 < len(words) < 2000, f"{len(words)} characters of words")


TARGET = Target(
    read,
    check,
    tuple(
        bytes([number % 4, 3, number]) + text
        for number, text in enumerate(
            (
                b"* * * * *",
                b"*/20 0 * * *",
                b"0 */2 * * *",
                b"30 2 25,29 3,10 *",
                b"15 1 * * SUN",
                b"0 12 1 jan-dec MON-fri/2",
                b"5/25 1/5 * * 7",
                b"0 0 29 2 */7",
                b"0 0 30 2 *",
                b"60 * * * *",
                b"1-2-3 * * *",
                b"* * * *",
                b"0 0 L * MON#5",
            )
        )
    ),
    (b"*/", b"MON", b"SUN", b"JAN", b"DEC", b"0-59", b"23", b"31", b"12", b",", b"-", b" "),
    max_bytes=300,
    base_ms=60.0,
)
