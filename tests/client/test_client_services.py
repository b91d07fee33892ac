"""The service definitions of `config/`: they parse, their commands exist, and status 3 is not started again."""

import asyncio
import configparser
import os
import plistlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from client import cli, eventloop
from client.credentials import Token
from client.environment import Waits
from client.identity import Identity
from tests.client.scripted_gateway import admit
from tests.support.ice import until

CONFIG = Path(__file__).parents[2] / "config"
UNIT = CONFIG / "ice-client.service"
TEMPLATE = CONFIG / "ice-client@.service"
AGENT = CONFIG / "ice-client.plist"
DAEMON = CONFIG / "ice-client-daemon.plist"
TASK = CONFIG / "ice-client.xml"
AT_BOOT = CONFIG / "ice-client-boot.xml"
DOCUMENT = (CONFIG.parent / "docs/client.md").read_text("utf-8")
HEARTBEAT = 30
"""Seconds; the gateway's default."""
ANALYZE = shutil.which("systemd-analyze")


def accept(command):
    """The command line of `ice-client` must be one that it takes; values to fill in are filled in."""
    _, name, *arguments = shlex.split(command)
    context = cli.main.commands[name].make_context(name, arguments)
    assert context.params["gateway"].startswith("https://")
    return context.params


@pytest.mark.parametrize("system", ["macOS", "Windows"])
def test_the_settings_of_the_instructions_are_some(system, tmp_path):
    section = DOCUMENT.partition(f"\n### {system}\n")[2].partition("\n##")[0]
    [settings] = re.findall(r"^gateway = .*?(?=^(?:END|'@)$)", section, re.DOTALL | re.MULTILINE)
    (tmp_path / "ice-client.toml").write_text(settings)
    arguments = ["--config", str(tmp_path / "ice-client.toml")]
    params = cli.main.commands["run"].make_context("run", arguments).params
    assert params["token_file"] == str(tmp_path / "token"), "which they have copied there"
    assert params["log_file"]
    assert params["state_dir"]


# --- Linux -------------------------------------------------------------------------------------


@pytest.fixture
def unit():
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str
    parser.read_string(UNIT.read_text("utf-8"))
    return parser


def test_the_unit_runs_a_command_that_exists(unit):
    command = unit["Service"]["ExecStart"]
    command = command.replace("${ICE_GATEWAY}", "https://gateway.example")
    params = accept(command.replace("$ICE_OPTIONS", "--ca-file /etc/ice-client/ca.pem"))

    folder = Path("/var/lib") / unit["Service"]["StateDirectory"]
    assert params["state_dir"] == folder, "systemd makes the state folder that the client uses"
    assert params["token_file"] == "/etc/ice-client/token"


def test_the_unit_starts_again_all_but_what_a_person_must_mend(unit):
    assert unit["Service"]["Restart"] == "on-failure"
    assert unit["Service"]["RestartPreventExitStatus"] == "2 3"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0", "systemd must not give up"


def test_systemd_waits_for_what_the_client_does_when_it_is_stopped(unit):
    needed = Waits().grace + Waits().answers + eventloop.TASK_TIMEOUT + 5
    assert int(unit["Service"]["TimeoutStopSec"]) >= needed


def test_systemd_watches_with_more_patience_than_the_gateway_has(unit):
    assert unit["Service"]["Type"] == "notify"
    assert int(unit["Service"]["WatchdogSec"]) > 2 * HEARTBEAT, "a handler may hold the loop up"
    assert unit["Service"]["LimitCORE"] == "0", (
        "the watchdog's signal must not write the key to a disk"
    )


class Systemd:
    """The socket that systemd reads."""

    def __init__(self, listener):
        self._listener = listener
        self.environ = {"NOTIFY_SOCKET": listener.getsockname()}

    async def heard(self, wanted):
        """The messages until one begins like this."""
        told = []
        while not told or not told[-1].startswith(wanted):
            told.append((await asyncio.to_thread(self._listener.recv, 4096)).decode())
        return told

    def heard_nothing(self):
        self._listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            self._listener.recv(4096)
        return True


@pytest.fixture
def systemd(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(30)
        listener.bind(str(tmp_path / "notify"))
        yield Systemd(listener)


@pytest.fixture
def start(fork, folder, token, systemd):
    """Start a client as systemd does, and return its process id."""

    async def start(url, *more, **environ):
        command = ("run", "--gateway", url, "--state-dir", folder, "--token-file", "-", *more)
        return await fork.start(*command, stdin=token, environ=systemd.environ | environ)

    return start


async def test_systemd_is_told_of_start_connection_and_stop(gateway, fork, start, systemd):
    gateway.script.append(admit())
    process = await start(gateway.url)
    assert await systemd.heard("STATUS=admitted") == [
        "READY=1",
        f"STATUS=connecting to {gateway.url}/ice/v1",
        "STATUS=admitted as lab-1 (normal), session s-1",
    ]
    os.kill(process, signal.SIGTERM)
    ended = await fork.end(process)
    assert ended.status == 0
    assert await systemd.heard("STOPPING") == ["STOPPING=1"]


async def test_a_client_without_its_gateway_has_started_and_gives_signs_of_life(
    fork, start, systemd
):
    process = await start("http://127.0.0.1:1", WATCHDOG_USEC="100000")
    told = await systemd.heard("STATUS=unreachable: ")
    assert "READY=1" in told
    await systemd.heard("WATCHDOG=1")
    os.kill(process, signal.SIGTERM)
    ended = await fork.end(process)
    assert ended.status == 0


async def test_a_client_that_cannot_start_does_not_say_that_it_has(
    fork, start, folder, token, systemd
):
    identity = Identity(folder, Token(token))
    ended = await fork.end(await start("http://127.0.0.1:1"))
    identity.close()
    assert ended.status == 1
    assert systemd.heard_nothing()


HANGING = """
import pathlib, time

async def hang(operation, report):
    pathlib.Path(operation.params).touch()
    time.sleep(60)

def register(ice, settings):
    ice.operation("execute")(hang)
"""


async def test_when_systemd_ends_a_hung_client_it_says_where_it_hung(
    gateway, fork, start, tmp_path
):
    (tmp_path / "mine.py").write_text(HANGING)
    gateway.script.append(admit())
    process = await start(
        gateway.url, "--handlers", tmp_path / "mine.py", WATCHDOG_USEC="120000000"
    )
    session = await gateway.session()
    await session.expect("ice.hello")
    hung = tmp_path / "hung"
    await session.send(
        id=1, method="operation.run", params={"id": "op-1", "kind": "execute", "params": str(hung)}
    )
    await until(hung.exists)
    os.kill(process, signal.SIGABRT)
    ended = await fork.end(process)
    assert ended.status == -signal.SIGABRT
    assert re.search(r'mine\.py", line \d+ in hang', ended.err)


def test_the_unit_of_several_differs_by_its_instance_alone():
    _, _, one = UNIT.read_text("utf-8").partition("[Unit]")
    _, _, several = TEMPLATE.read_text("utf-8").partition("[Unit]")
    assert several.count("%i") == 4, "its name, token, state folder, and that in systemd's words"
    assert re.sub(r"[ /]%i(?!\.)", "", several.replace("%i.token", "token")) == one


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("path", [UNIT, TEMPLATE], ids=lambda path: path.name)
def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path, path):
    text = path.read_text("utf-8").replace("/opt/ice-client/bin/ice-client", sys.executable)
    unit = tmp_path / path.name.replace("@", "@build-7")
    unit.write_text(text, "utf-8")
    for check in (["verify", "--man=no"], ["security", "--offline=yes", "--threshold=15"]):
        done = subprocess.run(
            [ANALYZE, *check, "--no-pager", unit],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-600:] + done.stderr


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze")
def test_systemd_takes_the_unit_of_a_desktop(tmp_path):
    [text] = re.findall(r"^```\n(\[Service\]\n.*?)```", DOCUMENT, re.DOTALL | re.MULTILINE)
    unit = tmp_path / "ice-client.service"
    unit.write_text(text.replace("%h/ice/bin/ice-client", sys.executable), "utf-8")
    done = subprocess.run(
        [ANALYZE, "--user", "verify", "--man=no", "--no-pager", unit],
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert unit.name not in done.stderr, done.stderr


# --- macOS -------------------------------------------------------------------------------------


SCRIPTS = pytest.mark.parametrize("path", [AGENT, DAEMON], ids=["agent", "daemon"])


def test_the_agent_runs_a_command_that_exists():
    shell, option, script = plistlib.loads(AGENT.read_bytes())["ProgramArguments"]

    assert (shell, option) == ("/bin/sh", "-c")
    (command,) = re.findall(r'^"\$HOME/.*(?= &$)', script, re.MULTILINE)
    assert accept(command)["log_file"] == Path("$HOME/Library/Logs/ice-client.log")


def test_the_daemon_runs_a_command_that_exists_as_its_own_user():
    daemon = plistlib.loads(DAEMON.read_bytes())

    (command,) = re.findall(r"^/opt/.*(?= &$)", daemon["ProgramArguments"][2], re.MULTILINE)
    program, *arguments = command.split()
    assert arguments == ["run", "--config", "/etc/ice-client/ice-client.toml"]
    for needed in (
        f"-addUser {daemon['UserName']} ",
        program,
        arguments[-1],
        f"-o {daemon['UserName']} ",
    ):
        assert needed in DOCUMENT, "the instructions make what the daemon needs"


@SCRIPTS
def test_it_is_started_again_unless_it_ended_with_0(path):
    definition = plistlib.loads(path.read_bytes())
    assert definition["Label"] == "ice-client"
    assert definition["KeepAlive"] == {"SuccessfulExit": False}
    assert definition["RunAtLoad"]
    assert definition["Umask"] == 0o077


@pytest.fixture
def launch(tmp_path):
    """Run the shell of a definition with this in place of the client."""

    def launch(path, does, shell="sh"):
        client = tmp_path / "ice/bin/ice-client"
        client.parent.mkdir(parents=True)
        client.write_text(f'#!/bin/sh\necho "$@"\n{does}\n')
        client.chmod(0o700)
        _, option, script = plistlib.loads(path.read_bytes())["ProgramArguments"]
        return subprocess.run(
            [
                shutil.which(shell),
                option,
                script.replace("/opt/ice-client/bin/ice-client", str(client)),
            ],
            env=os.environ | {"HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    return launch


@SCRIPTS
@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(
    ("does", "status"),
    [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 2", 0),
        ("exit 3", 0),
        # It asks the shell to stop, which should pass that on and wait for its end.
        (
            "trap 'echo in good order; exit 0' TERM; kill -TERM $PPID; while :; do sleep 0.02; done",
            0,
        ),
        ("trap 'exit 3' TERM; kill -TERM $PPID; while :; do sleep 0.02; done", 0),
    ],
)
def test_the_shell_passes_on_how_the_client_ends_but_for_2_and_3(does, status, shell, path, launch):
    done = launch(path, does, shell)

    assert done.returncode == status
    first, *rest = done.stdout.splitlines()
    assert first.startswith("run --")
    assert ("in good order" in rest) is ("in good order" in does)


@SCRIPTS
@pytest.mark.parametrize("number", [9, 15])
def test_the_shell_does_not_hide_that_the_client_was_killed(number, path, launch):
    done = launch(path, f"kill -{number} $$")

    assert done.returncode not in (0, 3), "launchd is to start it again"


# --- Windows -----------------------------------------------------------------------------------

NAMES = {"": "http://schemas.microsoft.com/windows/2004/02/mit/task"}


def task_of(path):
    text = path.read_text("ascii")  # read in whatever encoding PowerShell takes it for
    assert "encoding" not in text.splitlines()[0], "PowerShell gives it to Windows as UTF-16"
    return ET.fromstring(text)  # noqa: S314 - our own file


@pytest.fixture
def task():
    return task_of(TASK)


TASKS = pytest.mark.parametrize("path", [TASK, AT_BOOT], ids=["logon", "boot"])


@TASKS
def test_the_task_runs_a_command_that_exists(path):
    task = task_of(path)
    arguments = task.findtext("Actions/Exec/Arguments", namespaces=NAMES)

    assert task.findtext("Actions/Exec/Command", namespaces=NAMES) == "powershell.exe"
    (program, command) = re.findall(r"\\(ice-client)\.exe'\) (.*?);", arguments)[0]
    if path is TASK:
        command = re.sub(r"\(Join-Path \S+ '([\w.-]+)'\)", r"\1", command)
        assert accept(f"{program} {command}")["log_file"] == Path("ice-client.log")
    else:
        assert command == r"run --config (Join-Path $env:ProgramData 'ice-client\ice-client.toml')"
    assert "if ($LASTEXITCODE -in 0, 2, 3) { exit $LASTEXITCODE }" in arguments
    assert arguments.count('"') == 2, "a quotation mark within would end PowerShell's command"


@TASKS
def test_the_task_runs_once_at_a_time_and_without_end(path):
    task = task_of(path)
    settings = {
        name: task.findtext(f"Settings/{name}", namespaces=NAMES)
        for name in ("ExecutionTimeLimit", "MultipleInstancesPolicy", "StopIfGoingOnBatteries")
    }

    assert settings == {
        "ExecutionTimeLimit": "PT0S",
        "MultipleInstancesPolicy": "IgnoreNew",
        "StopIfGoingOnBatteries": "false",
    }


def test_the_task_at_logon_is_of_the_user_who_logs_on(task):
    users = [element.text for element in task.iter(f"{{{NAMES['']}}}UserId")]
    assert users == ["USER", "USER"], "which the instructions replace"


def test_the_task_at_boot_needs_nobody_who_is_logged_on():
    task = task_of(AT_BOOT)

    def text(path):
        return task.findtext(path, namespaces=NAMES)

    assert task.find("Triggers/BootTrigger", NAMES) is not None
    assert len(task.find("Triggers", NAMES)) == 1
    assert text("Principals/Principal/LogonType") == "Password"
    assert text("Principals/Principal/RunLevel") == "LeastPrivilege"
    user = text("Principals/Principal/UserId")
    assert f"New-LocalUser {user} " in DOCUMENT
    assert f"-User {user} -Password $password" in DOCUMENT
    # The schema allows 1 to 255, and a minute at least.
    assert 1 <= int(text("Settings/RestartOnFailure/Count")) <= 255
    assert text("Settings/RestartOnFailure/Interval") == "PT1M"


def test_the_password_that_the_instructions_make_is_one_that_windows_takes():
    [line] = re.findall(r"^PS> \$password = (.*)$", DOCUMENT, re.MULTILINE)
    assert line == """"$([guid]::NewGuid())$([guid]::NewGuid())".ToUpper() + 'a'"""
    made = f"{uuid.uuid4()}{uuid.uuid4()}".upper() + "a"
    kinds = [str.isdigit, str.islower, str.isupper, lambda char: char == "-"]
    assert sum(any(map(kind, made)) for kind in kinds) >= 3
    assert len(made) <= 127, "the most that New-LocalUser takes"


def test_the_instructions_replace_the_user_of_the_task_and_nothing_else():
    [(old, new)] = re.findall(r"""\.Replace\('([^']+)', "([^"]+)"\)""", DOCUMENT)
    before = TASK.read_text("ascii").splitlines()
    after = TASK.read_text("ascii").replace(old, new).splitlines()
    changed = [was for was, line in zip(before, after, strict=True) if was != line]
    assert [line.strip() for line in changed] == ["<UserId>USER</UserId>"] * 2
    assert new.strip("<>") == r"$env:USERDOMAIN\$env:USERNAME"


def test_the_instructions_name_files_that_exist():
    for path in (UNIT, AGENT, DAEMON, TASK, AT_BOOT):
        assert f"config/{path.name}" in DOCUMENT
    for command in re.findall(r"ice-client(?:\.exe)?\"? (?:run|status)[^`|\n]*", DOCUMENT):
        assert command.split()[1] in cli.main.commands
        for option in re.findall(r"(?<=\s)--[a-z-]+", command):
            known = {
                name for item in cli.main.commands[command.split()[1]].params for name in item.opts
            }
            assert option in known, f"{command!r} in docs/client.md: there is no {option}"
