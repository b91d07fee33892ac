"""The service definitions of `config/`: they parse, their commands exist, and status 3 is not started again."""

import configparser
import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from client import cli, eventloop
from client.environment import Waits

CONFIG = Path(__file__).parents[2] / "config"
UNIT = CONFIG / "ice-client.service"
AGENT = CONFIG / "ice-client.plist"
TASK = CONFIG / "ice-client.xml"
ANALYZE = shutil.which("systemd-analyze")


def accept(command):
    """The command line of `ice-client` must be one that it takes; values to fill in are filled in."""
    _, name, *arguments = shlex.split(command)
    context = cli.main.commands[name].make_context(name, arguments)
    assert context.params["gateway"].startswith("https://")
    return context.params


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
    assert unit["Service"]["RestartPreventExitStatus"] == "3"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0", "systemd must not give up"


def test_systemd_waits_for_what_the_client_does_when_it_is_stopped(unit):
    needed = Waits().grace + Waits().answers + eventloop.TASK_TIMEOUT + 5
    assert int(unit["Service"]["TimeoutStopSec"]) >= needed


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze")
def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path):
    text = UNIT.read_text("utf-8").replace("/opt/ice-client/bin/ice-client", sys.executable)
    (tmp_path / UNIT.name).write_text(text, "utf-8")
    for check in (["verify", "--man=no"], ["security", "--offline=yes", "--threshold=15"]):
        done = subprocess.run(
            [ANALYZE, *check, "--no-pager", tmp_path / UNIT.name],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-600:] + done.stderr


# --- macOS -------------------------------------------------------------------------------------


@pytest.fixture
def agent():
    return plistlib.loads(AGENT.read_bytes())


def test_the_agent_runs_a_command_that_exists(agent):
    shell, option, script = agent["ProgramArguments"]

    assert (shell, option) == ("/bin/sh", "-c")
    (command,) = re.findall(r'^"\$HOME/.*(?= &$)', script, re.MULTILINE)
    accept(command)


def test_the_agent_is_started_again_unless_it_ended_with_0(agent):
    assert agent["Label"] == AGENT.stem
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert agent["RunAtLoad"]
    assert agent["Umask"] == 0o077


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(
    ("does", "status"),
    [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 2", 2),
        ("exit 3", 0),
        # It asks the shell to stop, which should pass that on and wait for its end.
        (
            "trap 'echo in good order; exit 0' TERM; kill -TERM $PPID; while :; do sleep 0.02; done",
            0,
        ),
        ("trap 'exit 3' TERM; kill -TERM $PPID; while :; do sleep 0.02; done", 0),
    ],
)
def test_the_agents_shell_passes_on_how_the_client_ends_but_for_3(
    shell, does, status, agent, tmp_path
):
    client = tmp_path / "ice/bin/ice-client"
    client.parent.mkdir(parents=True)
    client.write_text(f'#!/bin/sh\necho "$@"\n{does}\n')
    client.chmod(0o700)
    log = tmp_path / "Library/Logs/ice-client.log"
    log.parent.mkdir(parents=True)
    done = subprocess.run(
        [shutil.which(shell), *agent["ProgramArguments"][1:]],
        env=os.environ | {"HOME": str(tmp_path)},
        check=False,
    )

    assert done.returncode == status
    first, *rest = log.read_text().splitlines()
    assert first == "run --gateway https://gateway.example:8440"
    assert ("in good order" in rest) is ("in good order" in does)


@pytest.mark.parametrize("number", [9, 15])
def test_the_agents_shell_does_not_hide_that_the_client_was_killed(number, agent, tmp_path):
    client = tmp_path / "ice/bin/ice-client"
    client.parent.mkdir(parents=True)
    client.write_text(f"#!/bin/sh\nkill -{number} $$\n")
    client.chmod(0o700)
    (tmp_path / "Library/Logs").mkdir(parents=True)
    done = subprocess.run(
        agent["ProgramArguments"], env=os.environ | {"HOME": str(tmp_path)}, check=False
    )

    assert done.returncode not in (0, 3), "launchd is to start it again"


# --- Windows -----------------------------------------------------------------------------------

NAMES = {"": "http://schemas.microsoft.com/windows/2004/02/mit/task"}


@pytest.fixture
def task():
    text = TASK.read_text("ascii")  # read in whatever encoding PowerShell takes it for
    assert "encoding" not in text.splitlines()[0], "PowerShell gives it to Windows as UTF-16"
    return ET.fromstring(text)  # noqa: S314 - our own file


def test_the_task_runs_a_command_that_exists(task):
    arguments = task.findtext("Actions/Exec/Arguments", namespaces=NAMES)

    assert task.findtext("Actions/Exec/Command", namespaces=NAMES) == "powershell.exe"
    (program, command) = re.findall(r"\\(ice-client)\.exe'\) (.*?);", arguments)[0]
    accept(f"{program} {command}")
    assert "if ($LASTEXITCODE -in 0, 2, 3) { exit $LASTEXITCODE }" in arguments
    assert arguments.count('"') == 2, "a quotation mark within would end PowerShell's command"


def test_the_task_runs_once_at_a_time_and_without_end(task):
    settings = {
        name: task.findtext(f"Settings/{name}", namespaces=NAMES)
        for name in ("ExecutionTimeLimit", "MultipleInstancesPolicy", "StopIfGoingOnBatteries")
    }

    assert settings == {
        "ExecutionTimeLimit": "PT0S",
        "MultipleInstancesPolicy": "IgnoreNew",
        "StopIfGoingOnBatteries": "false",
    }
    users = [element.text for element in task.iter(f"{{{NAMES['']}}}UserId")]
    assert users == ["USER", "USER"], "which the instructions replace"


def test_the_instructions_replace_the_user_of_the_task_and_nothing_else():
    text = (CONFIG.parent / "docs/client.md").read_text("utf-8")
    [(old, new)] = re.findall(r"""\.Replace\('([^']+)', "([^"]+)"\)""", text)
    before = TASK.read_text("ascii").splitlines()
    after = TASK.read_text("ascii").replace(old, new).splitlines()
    changed = [was for was, line in zip(before, after, strict=True) if was != line]
    assert [line.strip() for line in changed] == ["<UserId>USER</UserId>"] * 2
    assert new.strip("<>") == r"$env:USERDOMAIN\$env:USERNAME"


def test_the_instructions_name_files_that_exist():
    text = (CONFIG.parent / "docs/client.md").read_text("utf-8")

    for path in (UNIT, AGENT, TASK):
        assert f"config/{path.name}" in text
    for command in re.findall(r"ice-client(?:\.exe)? (?:run|status)[^`|\n]*", text):
        assert command.split()[1] in cli.main.commands
        for option in re.findall(r"(?<=\s)--[a-z-]+", command):
            known = {
                name for item in cli.main.commands[command.split()[1]].params for name in item.opts
            }
            assert option in known, f"{command!r} in docs/client.md: there is no {option}"
