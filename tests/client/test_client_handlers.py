"""Handlers for `ice-client run --handlers`, and the example that runs pytest suites."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner

from client.cli import main
from client.examples import pytest_suites
from client.handlers import BadHandlers, register, settings_of
from client.operations import OperationFailed
from tests.client.played import Played, Registry, a_name, alive
from tests.client.scripted_gateway import admit
from tests.support.ice import until

SUITE = """
import pytest

def test_passes(): pass
def test_fails(): assert 1 == 2
@pytest.mark.skip
def test_skipped(): pass
"""
LEAVING = """
import os, pathlib, subprocess, sys

def test_leaves_processes():
    pids = []
    for session in (False, True):
        child = subprocess.Popen(["sleep", "600"], stdout=1, start_new_session=session)
        pids.append(str(child.pid))
    pathlib.Path(os.environ["PIDS"]).write_text(" ".join(pids))
"""
ESCAPING = """
import os, subprocess, pathlib

def test_leaves_a_process_that_hides():
    child = subprocess.Popen(["sleep", "600"], env={}, stdout=1, start_new_session=True)
    pathlib.Path(os.environ["PIDS"]).write_text(str(child.pid))
"""
TALKING = """
import os, pathlib, time

def test_talks():
    os.write(1, "\u00e9 begun".encode())
    while not pathlib.Path(os.environ["GO_ON"]).exists():
        time.sleep(0.01)
    os.write(1, b"\\xff|" + b"x" * 1_000_000 + b"\\n")
"""
WAITING = """
import os, pathlib, subprocess, time

def test_waits():
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    child = subprocess.Popen(["sleep", "600"])
    pathlib.Path(os.environ["PIDS"]).write_text(f"{os.getpid()} {child.pid} {other.pid}")
    child.wait()
"""


@pytest.fixture
def suite(tmp_path):
    """A folder with a small suite."""
    folder = tmp_path / "suites" / "smoke"
    folder.mkdir(parents=True)
    (folder / "test_it.py").write_text(SUITE)
    return folder


@pytest.fixture
def execute(suite, monkeypatch):
    """Run an operation with these params by the example, which knows the suite `smoke`."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take seconds to import
    return Played(pytest_suites.register, {"suites": {"smoke": str(suite)}})


# --- modules -----------------------------------------------------------------------------------


def test_a_module_is_named_by_its_path_or_its_name(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def register(ice, settings): ice.operation('debug')(settings['x'])")
    ice = Registry()
    register(str(path), ice, {"x": 7})
    assert ice.handlers == {"debug": 7}
    for name in ("client.examples.pytest_suites", "client.pytest_suites"):
        ice = Registry()
        register(name, ice, {"suites": {"mine": str(tmp_path)}})
        assert set(ice.handlers) == set(pytest_suites.KINDS)


OF_ITS_NAME = """
from __future__ import annotations
import dataclasses
import msgspec
from client import IceClientError, Operation

@dataclasses.dataclass
class One:
    operation: Operation

class Other(msgspec.Struct):
    name: str

def register(ice, settings):
    if settings.get("fails"):
        raise IceClientError("because of its settings")
    ice.operation("debug")(msgspec.json.decode(b'{"name": "x"}', type=Other).name)
"""


@pytest.mark.parametrize("name", ["client.py", "csv.py", "mine.py"])
def test_a_file_of_handlers_may_have_the_name_of_a_module(tmp_path, name):
    (tmp_path / name).write_text(OF_ITS_NAME)
    ice = Registry()
    register(str(tmp_path / name), ice, {})
    assert ice.handlers == {"debug": "x"}
    with pytest.raises(BadHandlers, match=r"cannot be used: because of its settings$"):
        register(str(tmp_path / name), Registry(), {"fails": True})


@pytest.mark.parametrize("handlers", ["./client.py", "other.py"])
def test_the_command_works_beside_a_client_py_of_its_user(tmp_path, handlers):
    for name in ("client.py", "gateway.py", "other.py"):
        (tmp_path / name).write_text(f"{OF_ITS_NAME}\nassert __name__.startswith('ice_handlers_')")
    (tmp_path / "c.toml").write_text("[fails]\nwhy = 1")
    command = [Path(sys.executable).with_name("ice-client"), "run", "--gateway", "http://[::1]:9"]
    command += ["--state-dir", "state", "--handlers", handlers, "--config", "c.toml"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    wanted = f"ice-client: the handlers {handlers} cannot be used: because of its settings\n"
    assert (done.returncode, done.stderr) == (1, wanted)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be imported: FileNotFoundError: there is no file"),
        ("def", "cannot be imported: SyntaxError"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("import sys; sys.exit()", "cannot be imported: SystemExit"),
        ("import pytest; pytest.fail('a\\nb')", "cannot be imported: Failed: a b"),
        ("def register(ice, settings): exit(0)", "cannot be used: SystemExit: 0"),
        ("register = 5", "have no function register(ice, settings)"),
        ("def register(ice, settings): settings['no']", "cannot be used: KeyError: 'no'"),
        ("def register(): pass", "cannot be used: TypeError"),
    ],
)
def test_a_module_that_cannot_be_used_is_refused_in_one_line(tmp_path, text, says):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadHandlers) as refused:
        register(str(path), Registry(), {})
    assert says in str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_settings_are_understood_whatever_wrote_them(tmp_path, encoding):
    (tmp_path / "good.toml").write_text('lab = "é"\r\n', encoding=encoding)
    assert settings_of(tmp_path / "good.toml") == {"lab": "é"}


def test_settings_that_cannot_be_read_are_refused_in_one_line(tmp_path):
    assert settings_of(None) == {}
    with pytest.raises(BadHandlers, match="cannot be read: No such file"):
        settings_of(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe[")
    with pytest.raises(BadHandlers, match="is not TOML"):
        settings_of(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_text("= 5")
    with pytest.raises(BadHandlers, match="is not TOML"):
        settings_of(tmp_path / "bad.toml")


@pytest.mark.parametrize("handlers", ["no.such.module", "client.examples.pytest_suites"])
def test_the_client_does_not_start_with_handlers_that_cannot_be_used(tmp_path, handlers):
    options = ("--gateway", "http://127.0.0.1:1", "--state-dir", str(tmp_path / "state"))
    done = CliRunner().invoke(main, ["run", *options, "--handlers", handlers])
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith(f"ice-client: the handlers {handlers} cannot be "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "state").exists()


# --- the example -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"suites": {}},
        {"suites": "smoke"},
        {"suites": {"smoke": 5}},
        {"suites": {"smoke": "relative"}},
        {"suites": {"smoke": "/no/such/folder"}},
    ],
)
def test_settings_without_a_proper_suite_are_refused(settings):
    with pytest.raises(BadHandlers, match="suites"):
        pytest_suites.register(Registry(), settings)


def test_without_pytest_it_says_so_before_it_starts(suite, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadHandlers, match="pip install pytest"):
        pytest_suites.register(Registry(), {"suites": {"smoke": str(suite)}})


async def test_a_suite_is_run_and_reported(execute, suite):
    assert execute.kinds == {"execute", "remote-execute", "schedule"}
    result = await execute({"suite": "smoke"}, "remote-execute")
    junit = result.pop("junit")
    assert result == {"exit": 1, "tests": 3, "failures": 1, "errors": 0, "skipped": 1}
    cases = ET.fromstring(junit).iter("testcase")  # noqa: S314 - our own
    assert [case.get("name") for case in cases] == [
        "test_passes",
        "test_fails",
        "test_skipped",
    ]
    fractions = [fraction for fraction, _ in execute.reports]
    assert fractions == sorted(fractions)
    assert execute.reports[-1] == (1.0, "test_it.py::test_skipped")
    output = execute.output
    assert "test_it.py::test_fails FAILED" in output
    assert "assert 1 == 2" in output
    assert [path.name for path in suite.iterdir()] == ["test_it.py"], (
        "something was left in the suite's folder"
    )


@pytest.mark.parametrize(
    ("params", "code"),
    [
        (None, "bad-params"),
        ({}, "bad-params"),
        ("smoke", "bad-params"),
        ({"suite": "smoke", "arguments": ["-p", "evil"]}, "bad-params"),
        ({"suite": ["smoke"]}, "no-such-suite"),
        ({"suite": "other"}, "no-such-suite"),
        ({"suite": "../smoke"}, "no-such-suite"),
        ({"suite": "/etc"}, "no-such-suite"),
        ({"suite": ""}, "no-such-suite"),
    ],
)
async def test_nothing_but_a_name_of_the_settings_is_run(execute, params, code, monkeypatch):
    async def never(*args, **kwargs):
        raise AssertionError("a process was started")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", never)
    with pytest.raises(OperationFailed) as failed:
        await execute(params)
    assert failed.value.code == code
    if code == "no-such-suite":
        assert str(failed.value) == "this ICE has the suites smoke"


async def test_output_is_sent_as_it_appears(execute, suite, tmp_path, monkeypatch):
    """Also without the end of a line; what is no UTF-8 is replaced, and a long line is whole."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "--capture=no")
    monkeypatch.setenv("GO_ON", str(tmp_path / "go-on"))
    (suite / "test_it.py").write_text(TALKING)
    running = asyncio.create_task(execute({"suite": "smoke"}))
    await until(lambda: "é begun" in execute.output)
    assert not running.done()
    (tmp_path / "go-on").touch()
    assert (await running)["exit"] == 0
    output = execute.output
    assert "\ufffd|" + "x" * 1_000_000 in output


async def test_a_suite_without_tests_has_run(execute, suite):
    (suite / "test_it.py").unlink()
    assert (await execute({"suite": "smoke"}))["exit"] == 5


async def test_tests_that_cannot_be_run_fail_the_operation(execute, suite):
    (suite / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    with pytest.raises(OperationFailed, match="no-such-option") as failed:
        await execute({"suite": "smoke"})
    assert failed.value.code == "not-run"


async def test_a_folder_that_is_gone_fails_the_operation(execute, suite):
    (suite / "test_it.py").unlink()
    suite.rmdir()
    with pytest.raises(OperationFailed) as failed:
        await execute({"suite": "smoke"})
    assert failed.value.code == "not-run"


async def test_cancelling_ends_all_its_processes_and_leaves_nothing(
    execute, suite, tmp_path, monkeypatch
):
    pids, scratch = tmp_path / "pids", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setenv("PIDS", str(pids))
    (suite / "test_it.py").write_text(WAITING)
    running = asyncio.create_task(execute({"suite": "smoke"}))
    await until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    for pid in map(int, pids.read_text().split()):
        await until(lambda pid=pid: not alive(pid))
    assert not list(scratch.iterdir())


@pytest.fixture
def pids(tmp_path, monkeypatch):
    """The ids that a suite has written down."""
    path = tmp_path / "pids"
    monkeypatch.setenv("PIDS", str(path))
    monkeypatch.setenv("PYTEST_ADDOPTS", "--capture=no")  # what it starts has its output
    yield lambda: [int(pid) for pid in path.read_text().split()] if path.exists() else []
    for pid in [int(pid) for pid in path.read_text().split()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_what_a_suite_leaves_is_ended_and_not_waited_for(execute, suite, pids):
    (suite / "test_it.py").write_text(LEAVING)
    result = await execute({"suite": "smoke"})
    assert (result["exit"], result["tests"]) == (0, 1)
    assert len(pids()) == 2
    for pid in pids():
        await until(lambda pid=pid: not alive(pid))


async def test_what_hides_from_the_client_does_not_hold_it(execute, suite, pids):
    (suite / "test_it.py").write_text(ESCAPING)
    assert (await execute({"suite": "smoke"}))["exit"] == 0
    assert len(pids()) == 1


@pytest.fixture
async def start():
    """Start a program; what still runs at the end is killed."""
    started = []

    async def start(*command):
        where = Path(__file__).parents[2]
        started.append(await asyncio.create_subprocess_exec(*command, cwd=where))
        return started[-1]

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
def client(gateway, folder, token, suite):
    """The command that runs a client with the example."""
    token_file, settings = folder.with_name("t"), folder.with_name("c.toml")
    token_file.write_text(token)
    settings.write_text(f'[suites]\nsmoke = "{suite}"\n')
    return (
        *(sys.executable, "-m", "client", "run", "--gateway", gateway.url, "--state-dir", folder),
        *("--token-file", token_file, "--config", settings),
        *("--handlers", "client.examples.pytest_suites"),
    )


async def test_a_client_ends_what_a_killed_one_left(client, gateway, pids, start, suite):
    (suite / "test_it.py").write_text(WAITING)
    gateway.script.extend([admit(), admit()])
    first = await start(*client)
    session = await gateway.session()
    await session.expect("ice.hello")
    operation = {"id": a_name(), "kind": "execute", "params": {"suite": "smoke"}}
    await session.request("operation.run", operation)
    await until(lambda: len(pids()) == 3)
    bystander = await start("sleep", "600")
    first.kill()
    await first.wait()
    assert all(map(alive, pids()))
    await start(*client)
    session = await gateway.session()
    assert not any(map(alive, pids())), "they are ended before it connects"
    await session.expect("ice.hello")
    finish = await session.expect("operation.finish")
    assert finish["params"]["error"]["code"] == "interrupted"
    assert bystander.returncode is None
