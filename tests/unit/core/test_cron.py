from __future__ import annotations

import itertools
import sys
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.cron import MAX_CRON, Cron
from gateway.core.operation import NotValid
from tests.support.brute_cron import SPANS, brute_force, compare, real_minutes

EXPRESSIONS = [
    "* * * * *",
    "*/20 * * * *",
    "*/20 0 * * *",
    "0 */2 * * *",
    "*/7 1-3 * * *",
    "15,45 * * * *",
    "* 2 * * *",
    "5 *,3 * * *",
    "30 2 * * *",
    "0 2,3 * * *",
    "0-59 0-3 * * *",
    "0,30 0-23/2 * * *",
    "5/25 1/5 * * *",
    "0 0 * * *",
    "59 23 * * *",
    "1 0 * * *",
    "15 1 * * SUN",
    "30 2 25,29 3,10 *",
    "0 12 1 * MON",
    "45 23 */2 * 0-7",
]


def warm_start(zone: str, day: str) -> datetime:
    """Late enough that brute force has seen all changes that count."""
    return real_minutes(zone, day)[60][0]


@pytest.mark.parametrize(("zone", "day"), SPANS)
def test_fixed_and_real_times_of_each_change_are_those_of_brute_force(zone, day):
    for expression in ["*/30 0-3 * * *", "30 1,2 * * *", "15 0 * * *", "0 */2 * * *"]:
        compare(expression, zone, day, warm_start(zone, day))


@pytest.mark.parametrize(("zone", "day"), SPANS)
def test_the_times_of_that_day_alone_are_found_from_months_before(zone, day):
    _, month, number = (int(part) for part in day.split("-"))
    start = warm_start(zone, day)
    for hours in ["*/30 0-3", "30 0-3"]:
        expression = f"{hours} {number} {month} *"
        first = Cron.parse(expression, zone).next_after(start - timedelta(days=200))
        # A day that was skipped has no real minutes.
        seen = [first] if first <= real_minutes(zone, day)[-1][0] else []
        assert seen == brute_force(expression, zone, day)[:1], expression


@pytest.mark.long
@pytest.mark.parametrize(("zone", "day"), SPANS)
def test_twenty_expressions_of_each_change_are_those_of_brute_force(zone, day):
    for expression in EXPRESSIONS:
        compare(expression, zone, day, warm_start(zone, day))


def fields(first: int, last: int):
    number = st.integers(first, last)
    step = st.integers(1, last)
    span = st.tuples(number, number).map(sorted).map(lambda two: f"{two[0]}-{two[1]}")
    stepped = st.tuples(st.one_of(st.just("*"), span, number.map(str)), step)
    item = st.one_of(number.map(str), span, stepped.map(lambda two: f"{two[0]}/{two[1]}"))
    return st.one_of(st.just("*"), st.lists(item, min_size=1, max_size=3).map(",".join))


EXPRESSION = st.tuples(
    fields(0, 59),
    fields(0, 23),
    st.one_of(st.just("*"), fields(1, 31)),
    st.just("*"),
    st.one_of(st.just("*"), fields(0, 7)),
).map(" ".join)


@settings(max_examples=settings.default.max_examples // 3)
@given(EXPRESSION, st.sampled_from(SPANS), st.integers(60, 4000), st.integers(0, 59_999_999))
def test_any_expression_from_any_moment_is_that_of_brute_force(expression, span, minute, fraction):
    after = real_minutes(*span)[minute][0] + timedelta(microseconds=fraction)
    compare(expression, *span, after)


def times(expression: str, zone: str, after: str, count: int) -> list[str]:
    cron = Cron.parse(expression, zone)
    moment = datetime.fromisoformat(after)
    found = []
    for _ in range(count):
        moment = cron.next_after(moment)
        found.append(moment.astimezone(ZoneInfo(zone)).strftime("%d.%m. %H:%M%z"))
    return found


def test_a_fixed_time_that_clocks_skip_is_due_once_when_they_have_skipped_it():
    assert times("0,30 2 * * *", "Europe/Berlin", "2026-03-28T12:00Z", 3) == [
        "29.03. 03:00+0200",
        "30.03. 02:00+0200",
        "30.03. 02:30+0200",
    ]
    assert times("30 2,3 * * *", "Europe/Berlin", "2026-03-28T12:00Z", 2) == [
        "29.03. 03:00+0200",
        "29.03. 03:30+0200",
    ]


def test_a_fixed_time_that_comes_twice_is_due_at_the_first():
    expected = ["25.10. 02:30+0200", "26.10. 02:30+0100"]
    assert times("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00Z", 2) == expected
    # Asked for within the repeated hour.
    assert times("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10Z", 1) == expected[1:]
    # Clocks show 03:00 when they have shown 02:59 twice.
    assert times("0 3 * * *", "Europe/Berlin", "2026-10-25T01:10Z", 1) == ["25.10. 03:00+0100"]


def test_a_real_time_is_due_as_often_as_it_comes():
    assert times("30 * * * *", "Europe/Berlin", "2026-10-24T23:45Z", 3) == [
        "25.10. 02:30+0200",
        "25.10. 02:30+0100",
        "25.10. 03:30+0100",
    ]
    # Half an hour back at 02:00: the hour from 01:30 on comes twice, two o'clock once with each offset's hour.
    assert times("0 */2 * * *", "Australia/Lord_Howe", "2026-04-04T12:59Z", 3) == [
        "05.04. 00:00+1100",
        "05.04. 02:00+1030",
        "05.04. 04:00+1030",
    ]


def test_rare_days_are_found():
    assert times("0 0 29 2 *", "UTC", "2096-03-01T00:00Z", 2) == ["29.02. 00:00+0000"] * 2
    cron = Cron.parse("* * 29 2 */7", "Europe/Berlin")
    assert cron.next_after(datetime(2088, 3, 1, tzinfo=UTC)) == datetime(
        2128, 2, 28, 23, tzinfo=UTC
    )
    # A step of seven leaves Sundays; one day that begins with `*` makes both count.
    assert times("0 0 13 * */7", "UTC", "2026-03-14T00:00Z", 1) == ["13.09. 00:00+0000"]
    assert times("0 0 13 * FRI", "UTC", "2026-03-13T00:00Z", 1) == ["20.03. 00:00+0000"]


def test_a_time_that_a_zone_always_skips_is_never_due():
    """The 1st of October is the first Sunday of that month whenever it is a Sunday."""
    cron = Cron.parse("* 2 */31 10 SUN", "Australia/Sydney")
    assert cron.next_after(datetime(2026, 1, 1, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    "expression", ["0 0 29 2 */7", "* * 29 2 */7", "* 2 */31 10 SUN", "59 23 31 12 *"]
)
def test_a_search_takes_few_steps(expression, monkeypatch):
    """Whatever the expression: a change of a thousand zones must not walk minute by minute over years."""
    steps = 0

    def count(frame, event, arg):
        nonlocal steps
        steps += event == "call"

    cron = Cron.parse(expression, "Australia/Sydney")
    sys.setprofile(count)
    try:
        cron.next_after(datetime(2088, 3, 1, tzinfo=UTC))
    finally:
        sys.setprofile(None)
    assert steps < 20_000


def test_the_newest_of_a_year_is_found_by_halving(monkeypatch):
    asked = []
    cron = Cron.parse("* * * * *", "Europe/Berlin")
    real = Cron.next_after
    monkeypatch.setattr(Cron, "next_after", lambda self, at: asked.append(at) or real(self, at))
    until = datetime(2026, 11, 5, 12, 30, 17, tzinfo=UTC)
    assert cron.newest(until - timedelta(days=365), until) == until.replace(second=0)
    assert len(asked) < 40
    assert cron.newest(until, until) is None


FAULTS = {
    "": "must have five fields",
    "* * * *": "and has 4",
    "0 * * * * *": "and has 6",
    "@daily": "must have five fields",
    "*/61 * * * *": "minute `*/61`: a step is 1 to 59",
    "*/0 * * * *": "a step is 1 to 59",
    "0 */25 * * *": "hour `*/25`: a step is 1 to 23",
    "0 0 L * *": "day of month `L`: use numbers",
    "0 0 LW * *": "use numbers",
    "0 0 * * 5L": "use numbers",
    "0 0 * * MON#5": "day of week `MON#5`: use numbers",
    "0 0 ? * *": "use numbers",
    "60 * * * *": "minute `60`: numbers are 0 to 59",
    "0 24 * * *": "numbers are 0 to 23",
    "0 0 0 * *": "numbers are 1 to 31",
    "0 0 * 13 *": "numbers are 1 to 12",
    "0 0 * * 8": "numbers are 0 to 7",
    "0 0 * MON *": "MON is no name of this field",
    "MON 0 * * *": "MON is no name",
    "0 0 * * MON-XYZ": "XYZ is no name",
    "30-10 * * * *": "the range ends before it begins",
    "0 0 * * FRI-MON": "the range ends before it begins",
    "1,,2 * * * *": "minute ``: use",
    "*-5 * * * *": "minute `*-5`: use",
    "** * * * *": "use numbers",
    "1-2-3 * * * *": "use numbers",
    "*/5/5 * * * *": "use numbers",
    "-1 * * * *": "use numbers",
    "\u0661 * * * *": "use numbers",  # a digit, and not of ASCII
    "0 0 * * \u017fUN": "use numbers",  # becomes SUN in upper case
    "0 0\u00a0* * * *": "use numbers",
    "0 0 *\n* *": "and has 4",
    "0 0 30 2 *": "never matches",
    "0 0 31 2,4,6 *": "never matches",
    "0" * MAX_CRON + " * * * *": f"at most {MAX_CRON} characters",
    " " * 2_000_000: f"at most {MAX_CRON} characters",
}


@pytest.mark.parametrize(("expression", "reason"), FAULTS.items(), ids=lambda text: text[:20])
def test_another_form_is_refused_with_what_is_wrong(expression, reason):
    with pytest.raises(NotValid) as fault:
        Cron.parse(expression, "UTC")
    assert fault.value.field == "cron"
    assert reason in str(fault.value)


def test_what_cron_takes_is_taken():
    every_minute = ",".join(str(number) for number in range(60))
    same = itertools.pairwise(
        [
            "0-59 * * * 0-7",
            "\t* \t * * JAN-DEC *  ",
            f"{every_minute} * * * *",
            "*/1 */1 */1 */1 */1",
        ]
    )
    for one, other in same:
        assert times(one, "UTC", "2026-01-01T00:00:30Z", 3) == times(
            other, "UTC", "2026-01-01T00:00:30Z", 3
        )
    assert times("0 0 * * sun", "UTC", "2026-01-01T00:00Z", 2) == times(
        "0 0 * * 7", "UTC", "2026-01-01T00:00Z", 2
    )
    # A range of one with a step is that one.
    assert times("5-5/10 * * * *", "UTC", "2026-01-01T00:00Z", 2) == [
        "01.01. 00:05+0000",
        "01.01. 01:05+0000",
    ]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "Mars/Olympus",
            "europe/berlin",
            "CEST",
            "Europe",
            "Europe/",
            "Europe/Berlin\0",
            " UTC",
        ),
        *("../../etc/passwd", "/etc/localtime", "Europe/../Europe/Berlin", "C:\\Windows", "."),
        *(
            "localtime",
            "posixrules",
            "posix/UTC",
            "right/UTC",
            "tzdata.zi",
            "zone.tab",
            "U" * 100_000,
        ),
        "\ud800",
    ],
    ids=lambda name: repr(name)[:20],
)
def test_only_a_zone_of_the_database_is_taken(name):
    with pytest.raises(NotValid, match="must be an IANA name") as fault:
        Cron.parse("* * * * *", name)
    assert fault.value.field == "timezone"
    assert len(str(fault.value)) < 100


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("*/7 * * * *", "Every seventh minute of every hour."),
        ("30 2 * * MON-FRI", "At 02:30 on Monday through Friday."),
        (
            "0 0 1 * 1",
            "At 00:00 on the first day of month and on Monday, whichever of these days it is.",
        ),
    ],
)
def test_an_expression_in_words(expression, words):
    assert Cron.parse(expression, "UTC").in_words() == words
