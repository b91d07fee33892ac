"""The example for `debug`: one test, how it failed, and the source of each frame."""

import asyncio
import importlib
import json

import pytest

from client.examples import pytest_debug
from client.handlers import BadHandlers
from client.operations import OperationFailed
from tests.client.played import Played, Registry

HELPER = """
def check(value):
    expected = 2
    assert value == expected, f"é {value}"
"""
SUITE = """
import pytest
from helper import check

def test_passes(): pass

def test_fails():
    check(1)

@pytest.fixture
def broken():
    raise KeyError("\\udc80")

def test_errors(broken): pass

@pytest.mark.skip
def test_skipped(): pass

@pytest.mark.xfail(strict=True)
def test_passes_unexpectedly(): pass

@pytest.mark.parametrize("n", [1, 2])
def test_twice(n): pass

def deeper(n):
    return deeper(n - 1) if n else 1 / 0

def test_deep():
    deeper(200)  # LONG

def test_of_another_file():
    import json
    exec("def made(text): return json.loads(text)", {"json": json}, made := {})
    made["made"]("{")

class TestGroup:
    def test_one(self): assert False
"""


@pytest.fixture
def debug(tmp_path, monkeypatch):
    """Run one test of the suite `smoke`."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take seconds to import
    folder = tmp_path / "smoke"
    (folder / "client").mkdir(parents=True)
    (folder / "client" / "__init__.py").write_text("a package of this name is the suite's affair")
    (folder / "helper.py").write_text(HELPER)
    (folder / "test_it.py").write_text(SUITE.replace("LONG", "x" * 1000))
    (tmp_path / "test_outside.py").write_text("def test_it(): pass")
    played = Played(pytest_debug.register, {"suites": {"smoke": str(folder)}})
    assert played.kinds == {"debug"}

    async def debug(test):
        return await played({"suite": "smoke", "test": test}, "debug")

    debug.played, debug.folder = played, folder
    return debug


async def test_a_failure_has_the_source_of_its_frames(debug):
    result = await debug("test_it.py::test_fails")
    assert result.pop("duration") >= 0
    failure = result.pop("failure")
    assert result == {"exit": 1, "test": "test_it.py::test_fails", "outcome": "failed"}
    frames = failure.pop("frames")
    assert failure == {
        "when": "call",
        "type": "AssertionError",
        "message": "AssertionError: é 1",
        "frames_omitted": 0,
    }
    assert [(frame["file"], frame["line"], frame["function"]) for frame in frames] == [
        ("test_it.py", 8, "test_fails"),
        ("helper.py", 4, "check"),
    ]
    assert frames[1]["source"] == [
        {"line": number, "text": text} for number, text in enumerate(HELPER.splitlines(), 1)
    ]
    assert "test_it.py::test_fails FAILED" in debug.played.output
    assert debug.played.reports == [(1.0, "test_it.py::test_fails")]
    assert sorted(path.name for path in debug.folder.iterdir()) == [
        *("client", "helper.py", "test_it.py"),
    ]


@pytest.mark.parametrize(
    ("test", "exit_status", "outcome"),
    [
        pytest.param("test_it.py::test_skipped", 0, "skipped", marks=pytest.mark.long),
        ("test_it.py::test_twice[2]", 0, "passed"),
    ],
)
async def test_what_does_not_fail_has_no_failure(test, exit_status, outcome, debug):
    result = await debug(test)
    assert (result["exit"], result["outcome"], result["failure"]) == (exit_status, outcome, None)
    assert result["test"] == test


async def test_a_fixture_that_fails_is_an_error(debug):
    result = await debug("test_it.py::test_errors")
    assert (result["outcome"], result["failure"]["when"]) == ("error", "setup")
    assert result["failure"]["frames"][-1]["function"] == "broken"
    json.dumps(result, ensure_ascii=False).encode()


@pytest.mark.long
async def test_an_unexpected_pass_has_no_frames(debug):
    result = await debug("test_it.py::test_passes_unexpectedly")
    assert (result["outcome"], result["failure"]["frames"]) == ("failed", [])
    assert "XPASS" in result["failure"]["message"]


async def test_frames_and_lines_are_bounded(debug):
    failure = (await debug("test_it.py::test_deep"))["failure"]
    assert len(failure["frames"]) == 50
    assert failure["frames_omitted"] == 152
    assert failure["frames"][0]["function"] == "test_deep"
    assert failure["message"] == "ZeroDivisionError: division by zero"
    assert max(len(line["text"]) for line in failure["frames"][0]["source"]) == 300


async def test_frames_of_other_files_have_their_source_too(debug):
    frames = (await debug("test_it.py::test_of_another_file"))["failure"]["frames"]
    assert frames[0]["file"] == "test_it.py"
    assert frames[1]["source"] == [], "of this one there is none"
    assert frames[-1]["file"] == importlib.import_module("json.decoder").__file__
    assert "raise JSONDecodeError" in "".join(line["text"] for line in frames[-1]["source"])


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ("test_it.py::test_twice", "2 tests have this name"),
        pytest.param("test_it.py::TestGroup::test_none", "not found", marks=pytest.mark.long),
    ],
)
async def test_what_is_not_one_test_is_not_run(test, says, debug):
    with pytest.raises(OperationFailed, match=says) as failed:
        await debug(test)
    assert failed.value.code == "not-run"
    assert "PASSED" not in debug.played.output


@pytest.mark.parametrize(
    ("params", "code"),
    [
        (None, "bad-params"),
        ({"suite": "smoke"}, "bad-params"),
        ({"suite": "smoke", "test": "a::b", "more": 1}, "bad-params"),
        ({"suite": "smoke", "test": 7}, "bad-params"),
        ({"suite": "smoke", "test": "test_it.py"}, "bad-params"),
        ({"suite": "smoke", "test": "test_it.py::\0"}, "bad-params"),
        ({"suite": "smoke", "test": "test_it.py::" + "x" * 1000}, "bad-params"),
        ({"suite": "other", "test": "test_it.py::test_passes"}, "no-such-suite"),
        ({"suite": "smoke", "test": "../test_outside.py::test_it"}, "no-such-test"),
        ({"suite": "smoke", "test": "/etc/passwd::test_it"}, "no-such-test"),
        ({"suite": "smoke", "test": "--help::test_it"}, "no-such-test"),
        ({"suite": "smoke", "test": "@test_it.py::test_passes"}, "no-such-test"),
        ({"suite": "smoke", "test": "::test_passes"}, "no-such-test"),
    ],
)
async def test_nothing_but_a_test_of_a_suite_is_run(params, code, debug, monkeypatch):
    async def never(*args, **kwargs):
        raise AssertionError("a process was started")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", never)
    with pytest.raises(OperationFailed) as failed:
        await debug.played(params, "debug")
    assert failed.value.code == code


def test_without_suites_it_does_not_start():
    with pytest.raises(BadHandlers, match="suites"):
        pytest_debug.register(Registry(), {})
