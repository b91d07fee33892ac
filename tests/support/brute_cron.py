"""When a cron expression is due by brute force: one real minute after the other, read apart from the product."""

from __future__ import annotations

import calendar
import functools
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from gateway.core.cron import Cron

MINUTE = timedelta(minutes=1)
AROUND = timedelta(hours=27)

# Both directions in each zone, and the days of both; local dates.
CHANGES = {
    "Europe/Berlin": ["2026-03-29", "2026-10-25"],
    "Australia/Lord_Howe": ["2026-04-05", "2026-10-04"],  # half an hour
    "America/St_Johns": [
        "2026-03-08",
        "2026-11-01",
        "2010-03-14",
        "2010-11-07",
    ],  # until 2011 at 00:01
    "Asia/Tehran": ["2022-03-22", "2022-09-22"],  # at midnight
    "Africa/Casablanca": ["2026-02-15", "2026-03-22"],  # around Ramadan
    "America/Sao_Paulo": ["2018-02-18", "2018-11-04"],  # at midnight
    "Africa/Cairo": ["2026-04-24", "2026-10-30"],
    "America/Havana": ["2026-03-08", "2026-11-01"],
    "Atlantic/Azores": ["2026-03-29", "2026-10-25"],
    "Antarctica/Troll": ["2026-03-29", "2026-10-25"],  # two hours
    "America/New_York": ["2026-03-08", "2026-11-01"],
    "Asia/Beirut": ["2026-03-29", "2026-10-25"],
    "Pacific/Apia": ["2011-12-30", "2012-04-01"],  # a day is skipped
    "Pacific/Kwajalein": ["1993-08-21"],
    "Asia/Kathmandu": ["2026-06-01"],  # none; +05:45
    "UTC": ["2026-06-01"],
}
SPANS = [(zone, day) for zone, days in CHANGES.items() for day in days]


def expand(field: str, first: int, last: int) -> set[int]:
    """The numbers that a field of numbers means; read apart from the code that is tested."""
    numbers = set()
    for item in field.split(","):
        span, _, step = item.partition("/")
        low, _, high = span.partition("-")
        begin = first if low == "*" else int(low)
        end = int(high) if high else last if low == "*" or step else begin
        numbers |= set(range(begin, end + 1, int(step or 1)))
    return numbers


_NAMES = (
    {},
    {},
    {},
    {calendar.month_abbr[number].upper(): str(number) for number in range(1, 13)},
    {calendar.day_abbr[number - 1].upper(): str(number % 7) for number in range(1, 8)},
)


def _in_numbers(field: str, names: dict[str, str]) -> str:
    return re.sub("[A-Z]+", lambda found: names[found[0]], field.upper())


@functools.lru_cache(1000)
def matcher(expression: str) -> Callable[[datetime], bool]:
    """Whether a local time matches the expression, which is valid."""
    texts = [*map(_in_numbers, expression.split(), _NAMES)]
    limits = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]
    minutes, hours, days, months, weekdays = (
        expand(text, *span) for text, span in zip(texts, limits, strict=True)
    )
    both = texts[2][0] == "*" or texts[4][0] == "*"

    def matches(local: datetime) -> bool:
        if local.minute not in minutes or local.hour not in hours or local.month not in months:
            return False
        day = local.day in days
        weekday = bool({local.isoweekday(), local.isoweekday() % 7} & weekdays)
        return (day and weekday) if both else (day or weekday)

    return matches


@functools.cache
def real_minutes(zone: str, day: str) -> list[tuple[datetime, datetime]]:
    """Each real minute around a local day, and the local time that clocks show."""
    begin = datetime.fromisoformat(f"{day}T00:00Z") - timedelta(hours=14) - AROUND
    tz = ZoneInfo(zone)
    minutes = (begin + number * MINUTE for number in range(40 * 60 + 2 * 27 * 60))
    return [(one, one.astimezone(tz).replace(tzinfo=None)) for one in minutes]


def brute_force(expression: str, zone: str, day: str) -> list[datetime]:
    """All instants around that day, one real minute after the other."""
    matches, (minute, hour, *_) = matcher(expression), expression.split()
    walk = real_minutes(zone, day)
    if minute[0] == "*" or hour[0] == "*":
        return [real for real, local in walk if matches(local)]
    due, shown = [], walk[0][1]
    for real, local in walk[1:]:
        # What clocks show for the first time now, and what they have skipped before.
        new = (shown + number * MINUTE for number in range(1, (local - shown) // MINUTE + 1))
        if any(matches(one) for one in new):
            due.append(real)
        shown = max(shown, local)
    return due


def compare(expression: str, zone: str, day: str, after: datetime) -> None:
    """Fail unless the product finds what brute force finds after this moment, one by one and from the end."""
    cron = Cron.parse(expression, zone)
    end = real_minutes(zone, day)[-1][0]
    expected = [one for one in brute_force(expression, zone, day) if one > after]
    found = []
    while (moment := cron.next_after(found[-1] if found else after)) is not None and moment <= end:
        found.append(moment)
    assert found == expected, (expression, zone, day)
    assert cron.newest(after, end) == (expected[-1] if expected else None)
