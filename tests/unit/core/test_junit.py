"""JUnit reports in results: read, cut, and none where there is none."""

from __future__ import annotations

import json

import pytest

from gateway.core.junit import MAX_FAILED, MAX_MESSAGE, report_of

JUNIT = """<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite name="pytest" tests="4">
<testcase classname="test_a" name="test_good" time="0.1" />
<testcase classname="test_a" name="test_bad"><failure message="assert 1 == 2">def test_bad(): \x85</failure></testcase>
<testcase classname="test_a" name="test_torn"><error message="no fixture">no fixture 'x'</error></testcase>
<testcase name="test_left"><skipped message="later" /></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize("result", [{"exit": 1, "junit": JUNIT}, JUNIT])
def test_failed_tests_are_named_with_their_message(result):
    report = report_of(json.dumps(result).encode())
    assert (report.failures, report.errors, report.skipped, report.passed) == (1, 1, 1, 1)
    assert [(each.name, each.outcome, each.message) for each in report.failed] == [
        ("test_a.test_bad", "failure", "assert 1 == 2\ndef test_bad():"),
        ("test_a.test_torn", "error", "no fixture 'x'"),
    ]


def test_a_long_report_of_any_declared_encoding_is_read_whole():
    cases = '<testcase name="größer"/>' * 5000
    text = f'<?xml version="1.0" encoding="utf-16"?><testsuite>{cases}</testsuite>'
    assert report_of(json.dumps({"junit": text, "numbers": [0.5]}).encode()).passed == 5000


def test_what_is_shown_is_bounded():
    case = f'<testcase name="{"n" * 1000}"><failure>{"x" * 5000}</failure></testcase>'
    report = report_of(json.dumps(f"<testsuite>{case * 70}</testsuite>").encode())
    assert (report.failures, len(report.failed)) == (70, MAX_FAILED)
    assert len(report.failed[0].message) == MAX_MESSAGE + 1
    assert len(report.failed[0].name) == 300


@pytest.mark.parametrize(
    "result",
    [
        None,
        b"1",
        b'"testsuite"',
        b'{"junit": 1, "x": "testsuite"}',
        b'"<testsuite>"',
        b'"<html>testsuite</html>"',
        b"\"<!DOCTYPE testsuite [<!ENTITY a 'b'>]><testsuite>&a;</testsuite>\"",
        json.dumps("<testsuite>" + "<a>" * 100_000).encode(),
        b"testsuite",
    ],
)
def test_no_report(result):
    assert report_of(result) is None
