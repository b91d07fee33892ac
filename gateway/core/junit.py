"""Reads the JUnit report in the result of an operation, so that people see its failed tests. Pure.

A result has a report if it is JUnit XML itself, or an object with JUnit XML as `junit`, as the example for pytest
suites (`client.examples.pytest_suites`) answers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree as ET

import msgspec

from gateway.core.text import printable

MAX_FAILED: Final = 50
"""Failed tests of one report that are shown."""
MAX_MESSAGE: Final = 1_000
"""Characters of a failed test's message that are shown."""
_MAX_NAME: Final = 300
_PIECE: Final = 16 * 1024
"""Characters that are parsed in one step."""


@dataclass(frozen=True, slots=True)
class FailedTest:
    """A test that failed, or could not run (`error`)."""

    name: str
    outcome: str
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a report says: the first `MAX_FAILED` failed tests, and how many tests ended how."""

    failed: list[FailedTest]
    failures: int
    errors: int
    skipped: int
    passed: int


class _Result(msgspec.Struct):
    junit: str


def report_of(result: bytes | None) -> Report | None:
    """The report in a result, which is JSON; None if there is none that can be read."""
    if result is None or b"testsuite" not in result:
        return None
    try:
        # Other values are skipped: to build the numbers of one result takes a second.
        value = msgspec.json.decode(result, type=str | _Result)
    except (ValueError, RecursionError):  # another shape, or an older version stored it
        return None
    text = value.junit if isinstance(value, _Result) else value
    # A document type could define entities, which expand without end. No test tool writes one.
    if "<!DOCTYPE" in text:
        return None
    parser = ET.XMLParser()  # noqa: S314 - it has no document type
    try:
        # In pieces: between two of them another thread can take the interpreter lock.
        for start in range(0, len(text), _PIECE):
            parser.feed(text[start : start + _PIECE])
        root = parser.close()
    except (ET.ParseError, ValueError):
        return None
    if root.tag not in ("testsuite", "testsuites"):
        return None
    outcomes: Counter[str] = Counter()
    failed: list[FailedTest] = []
    for case in root.iter("testcase"):
        outcome, details = _outcome(case)
        outcomes[outcome] += 1
        if details is not None and len(failed) < MAX_FAILED:
            failed.append(FailedTest(_name(case), outcome, _message(details)))
    return Report(
        failed, outcomes["failure"], outcomes["error"], outcomes["skipped"], outcomes["passed"]
    )


def _outcome(case: ET.Element) -> tuple[str, ET.Element | None]:
    for outcome in ("failure", "error"):
        details = case.find(outcome)
        if details is not None:
            return outcome, details
    return "passed" if case.find("skipped") is None else "skipped", None


def _name(case: ET.Element) -> str:
    name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
    return printable(name[:_MAX_NAME]) or "without a name"


def _message(details: ET.Element) -> str:
    """The message, then the text unless it begins with that."""
    message, text = details.get("message", "").strip(), (details.text or "").strip()
    whole = text if text.startswith(message) else f"{message}\n{text}"
    lines = "\n".join(map(printable, whole[: MAX_MESSAGE + 1].splitlines()))
    return lines if len(whole) <= MAX_MESSAGE else f"{lines[:MAX_MESSAGE]}…"
