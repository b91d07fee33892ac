"""Cron expressions: their form, and the instants at which they are due in a time zone. Pure.

An expression has five fields: minute, hour, day of month, month, day of week. If both days are restricted (neither
begins with `*`), one of them has to match, as in Vixie's cron. What a change of clocks does:

- The minute or the hour begins with `*`: due at every real instant whose local time matches. An hour that clocks skip
  has none, one that comes twice has them twice.
- Otherwise it names fixed times. One that exists is due when it first comes; all that a change skips are due once,
  together, at the first instant after it.

`cronsim` finds the local times that match; it knows nothing of zones here, because its own ones lose times (`0 */2 * * *`
in Australia/Lord_Howe). The time zone database counts as a part of Python. Source: docs/api.md.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from gateway.core.operation import NotValid

MAX_CRON: Final = 256
"""Characters of an expression; all minutes, one by one, take 169."""
HORIZON: Final = timedelta(days=50 * 366)
"""How far ahead a match is looked for. The rarest is 29 February on a given weekday, up to 40 years apart."""
_DAY: Final = timedelta(days=1)
_NEAR: Final = 2 * _DAY
"""No change of clocks moves the local time further; the largest ones, across the date line, are of a day."""
_SECOND: Final = timedelta(seconds=1)
_LEAST: Final = timedelta.resolution
_NOT_OF_IANA: Final = frozenset({"localtime", "posixrules"})
"""Files of the database that mean another zone on each machine."""


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of an expression: its name, its least and greatest number, and names for numbers from the least on."""

    name: str
    first: int
    last: int
    names: tuple[str, ...] = ()

    def canonical(self, text: str) -> str:
        """The field as `cronsim` reads it. Raises `NotValid`."""
        return ",".join(self._item(item) for item in text.split(","))

    def _item(self, item: str) -> str:
        found = _ITEM.fullmatch(item)
        if found is None:
            raise self._fault(item, "use numbers, names, `*`, `,`, `-` and `/`")
        begin, end, step = found.groups()
        if step is not None and not 1 <= int(step) <= self.last:
            raise self._fault(item, f"a step is 1 to {self.last}")
        if begin == "*":
            return item
        low = self._number(begin, item)
        if end is None:
            return str(low) if step is None else f"{low}/{step}"
        high = self._number(end, item)
        if high < low:
            raise self._fault(item, "the range ends before it begins")
        # `cronsim` would let a step lead beyond the end of a range of one.
        return str(low) if low == high else f"{low}-{high}" + (f"/{step}" if step else "")

    def _number(self, text: str, item: str) -> int:
        if text.upper() in self.names:
            return self.first + self.names.index(text.upper())
        if not text.isdigit():
            raise self._fault(item, f"{text} is no name of this field")
        number = int(text)
        if not self.first <= number <= self.last:
            raise self._fault(item, f"numbers are {self.first} to {self.last}")
        return number

    def _fault(self, item: str, reason: str) -> NotValid:
        return NotValid("cron", f"{self.name} `{item}`: {reason}")


_ITEM: Final = re.compile(
    r"(\*|[0-9]{1,2}|[A-Za-z]{3})(?:(?<!\*)-([0-9]{1,2}|[A-Za-z]{3}))?(?:/([0-9]{1,2}))?", re.ASCII
)
_MONTHS: Final = (
    *("JAN", "FEB", "MAR", "APR", "MAY", "JUN"),
    *("JUL", "AUG", "SEP", "OCT", "NOV", "DEC"),
)
_WEEKDAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_FIELDS: Final = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _WEEKDAYS),
)


@dataclass(frozen=True, slots=True)
class Cron:
    """A checked expression in a time zone. Moments are aware, in UTC.

    To find the next instant costs some 30 microseconds, and at most some 2 ms if it is decades away.
    """

    canonical: str
    zone: ZoneInfo
    is_fixed: bool

    @classmethod
    def parse(cls, expression: str, timezone: str) -> Cron:
        """Check an expression and the IANA name of a time zone. Raises `NotValid`.

        An expression that can match in no zone, as on 30 February, is not valid. One whose only times are
        skipped by this zone's changes of clocks is found by `next_after` alone, which answers None.
        """
        if len(expression) > MAX_CRON:
            raise NotValid("cron", f"at most {MAX_CRON} characters")
        texts = re.findall(r"[^ \t]+", expression)
        if len(texts) != len(_FIELDS):
            names = ", ".join(field.name for field in _FIELDS)
            raise NotValid("cron", f"must have five fields ({names}), and has {len(texts)}")
        canonical = " ".join(
            field.canonical(text) for field, text in zip(_FIELDS, texts, strict=True)
        )
        try:
            CronSim(canonical, datetime.min)  # noqa: DTZ901 - local times have no zone here
        except CronSimError:
            raise NotValid("cron", "never matches: no such month has such a day") from None
        is_fixed = not any(text.startswith("*") for text in texts[:2])
        return cls(canonical, _zone(timezone), is_fixed)

    def in_words(self) -> str:
        """What it says, as an English sentence."""
        words = CronSim(self.canonical, datetime.min).explain()  # noqa: DTZ901 - likewise
        _, _, day, _, weekday = self.canonical.split()
        either = not day.startswith("*") and not weekday.startswith("*")
        return f"{words}, whichever of these days it is." if either else f"{words}."

    def next_after(self, moment: datetime) -> datetime | None:
        """The first instant after `moment` at which it is due; None if there is none within `HORIZON`."""
        return self._next_fixed(moment) if self.is_fixed else self._next_real(moment)

    def all_after(self, moment: datetime) -> Iterator[datetime]:
        """The instants after `moment` at which it is due, in order."""
        following = self.next_after(moment)
        while following is not None:
            yield following
            following = self.next_after(following)

    def newest(self, after: datetime, until: datetime) -> datetime | None:
        """The last instant at which it is due, after `after` and not after `until`.

        The search halves the span: a year takes at most some 25 steps, however many instants are in it.
        """
        newest = self.next_after(after)
        if newest is None or newest > until:
            return None
        early, late = newest, until
        while late - early >= _SECOND:  # those of a zone's changes may be at any whole second
            middle = early + (late - early) / 2
            found = self.next_after(middle)
            if found is None or found > until:
                late = middle
            else:
                newest = early = found
        return newest

    def _next_fixed(self, moment: datetime) -> datetime | None:
        # The latest local time that clocks have shown yet: later than that of `moment` if they were set back since.
        shown = self._local(moment)
        day_before = moment - _DAY
        change = self._first_change(day_before, moment)
        if change is not None:
            shown = max(shown, _naive(change + self._offset(day_before)) - _LEAST)
        due = self._match_after(shown)
        return None if due is None else self._place(due)

    def _place(self, local: datetime) -> datetime:
        """The instant at which a fixed local time is due."""
        first = local.replace(tzinfo=self.zone).astimezone(UTC)
        if self._local(first) == local:
            return first
        # Clocks skip it. Read with the offset after the change (`fold`) it is an instant before, and vice versa.
        before = local.replace(tzinfo=self.zone, fold=1).astimezone(UTC)
        return self._change(before, first)

    def _next_real(self, moment: datetime) -> datetime | None:
        start, end = moment + _LEAST, moment + HORIZON
        while start < end:
            offset = self._offset(start)
            local = self._match_after(_naive(start + offset) - _LEAST)
            if local is None:
                return None
            due = local.replace(tzinfo=UTC) - offset
            change = self._first_change(start, min(due, start + _NEAR))
            if change is not None:
                start = change
            elif due - start <= _NEAR:
                return due
            else:
                # Clocks do not change near `start`, so they show no match before they are near that of `due`.
                start = due - _NEAR
        return None

    def _match_after(self, local: datetime) -> datetime | None:
        """The first whole minute after a local time that matches, whether clocks show it or not."""
        return next(CronSim(self.canonical, local), None)

    def _first_change(self, early: datetime, late: datetime) -> datetime | None:
        """The first instant after `early` and not after `late` from which another offset counts.

        It is looked for day by day: the database has no two changes of a zone within three days.
        """
        while early < late:
            end = min(early + _DAY, late)
            if self._offset(end) != self._offset(early):
                return self._change(early, end)
            early = end
        return None

    def _change(self, early: datetime, late: datetime) -> datetime:
        """The instant of the change between two instants of different offsets; changes are at whole seconds."""
        early = early.replace(microsecond=0)
        offset = self._offset(early)
        low, high = 0, -((early - late) // _SECOND)
        while high - low > 1:
            middle = (low + high) // 2
            if self._offset(early + middle * _SECOND) == offset:
                low = middle
            else:
                high = middle
        return early + high * _SECOND

    def _offset(self, moment: datetime) -> timedelta:
        offset = moment.astimezone(self.zone).utcoffset()
        assert offset is not None  # noqa: S101 - a ZoneInfo has one
        return offset

    def _local(self, moment: datetime) -> datetime:
        return _naive(moment.astimezone(self.zone))


def _naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None)


def checked_expression(expression: str) -> str:
    """This expression, which is valid in any time zone. Raises `NotValid`."""
    Cron.parse(expression, "UTC")
    return expression


def is_zone(name: str) -> bool:
    """Whether this machine's database has a time zone of this name."""
    return name in _zone_names()


def _zone(name: str) -> ZoneInfo:
    """The time zone of an IANA name. Raises `NotValid`.

    Only names that are in the database reach the file system.
    """
    if not is_zone(name):
        raise NotValid("timezone", "must be an IANA name such as Europe/Berlin or UTC")
    return _load(name)


_load: Final = functools.cache(ZoneInfo)


@functools.cache
def _zone_names() -> frozenset[str]:
    """All names; the first call reads the database, which takes some 20 ms."""
    return frozenset(available_timezones() - _NOT_OF_IANA)
