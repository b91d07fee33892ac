"""The scripts of `config/rollout`: they parse, name options of the client that exist, and refuse wrong arguments.

What they do to a machine is not tested here: it takes root, and systemd, launchd or Windows.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from client import cli

CONFIG = Path(__file__).parents[2] / "config"
SHELL = CONFIG / "rollout/install-ice.sh"
POWERSHELL = CONFIG / "rollout/install-ice.ps1"
ROLE = CONFIG / "rollout/ansible/roles/ice_client"
REQUIRED = ["--gateway", "https://gateway.example", "--package", "ice.whl"]


def install(*words):
    return subprocess.run(
        [shutil.which("sh"), SHELL, *words], capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_shells_understand_the_script(shell):
    done = subprocess.run(
        [shutil.which(shell), "-n", SHELL], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


CALLS = {
    "run": r"ice-client run (.*)|s\|--token-file [^|]*\|(.*?)\||^ *options=\"(.*)|\$words \+?= (.*)",
    "enrol": r"\bset -- (.*)|ice-client\" enrol (.*)|\$enrol \+?= (.*)",
    "status": r"\bclient\(\) (.*)|\bclient status (.*)|'status', (.*)",
}
"""What a script gives a command of the client stands after these."""


@pytest.mark.parametrize("path", [SHELL, POWERSHELL], ids=lambda path: path.suffix)
@pytest.mark.parametrize("name", CALLS)
def test_the_scripts_use_options_of_the_client(name, path):
    found = re.findall(CALLS[name], path.read_text("utf-8"), re.MULTILINE)
    given = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", " ".join(" ".join(one) for one in found)))
    assert "--state-dir" in given or (name, path) == ("run", SHELL), "of Linux's it is in the unit"
    assert name == "status" or {"--enrolment-key-file", "--ca-file"} <= given
    known = {option for item in cli.main.commands[name].params for option in item.opts}
    assert given <= known | {"--help"}, f"{path.name}: `{name}` has no {given - known}"


@pytest.mark.parametrize("path", [SHELL, POWERSHELL], ids=lambda path: path.suffix)
def test_what_the_scripts_replace_stands_in_the_services(path):
    text = path.read_text("utf-8")
    unit, agent, task = (
        (CONFIG / f"ice-client.{kind}").read_text("utf-8") for kind in ("service", "plist", "xml")
    )
    if path is SHELL:
        assert "s|--token-file /etc/ice-client/token|" in text
        assert unit.count("--token-file /etc/ice-client/token") == 1
        assert len(re.findall(r"^User=", unit, re.MULTILINE)) == 1
        assert r"s|\"\$HOME/ice/bin/ice-client\" run --gateway [^ ]*|" in text
        assert (
            len(re.findall(r'"\$HOME/ice/bin/ice-client" run --gateway [^ ]* --log-file', agent))
            == 1
        )
    else:
        assert "(Join-Path `$env:USERPROFILE 'ice\\Scripts\\ice-client.exe')" in text
        assert task.count(r"(Join-Path $env:USERPROFILE 'ice\Scripts\ice-client.exe')") == 1
        assert "'run --gateway https://gateway.example:8440'" in text
        assert task.count("run --gateway https://gateway.example:8440") == 1


def test_both_scripts_take_the_same_options():
    words = re.findall(r"^ {4}(--[a-z-]+)[ )]", SHELL.read_text("utf-8"), re.MULTILINE)
    shell = {word[2:].replace("-", "") for word in words} - {"help"}
    [block] = re.findall(
        r"^param\((.*?)^\)", POWERSHELL.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert {name.lower() for name in re.findall(r"\$(\w+)", block) if name != "true"} == shell


def test_the_help_names_every_option():
    done = install("--help")
    assert (done.returncode, done.stderr) == (0, "")
    words = re.findall(r"^ {4}(--[a-z-]+)[ )]", SHELL.read_text("utf-8"), re.MULTILINE)
    assert {word for word in words if word not in done.stdout} == {"--help"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--gateway"),
        (["--gateway", "gateway.example"], "--gateway"),
        (["--gateway", "https://gateway.example/$(id)"], "--gateway"),
        (["--gateway", "https://gateway.example"], "--package"),
        ([*REQUIRED, "--package", "https://name:secret@packages.example/ice.whl"], "--package"),
        ([*REQUIRED, "--options", "--config 'a b'"], "--options"),
        ([*REQUIRED, "--run-as", "alice;id"], "--run-as"),
        ([*REQUIRED, "--wait", "3601"], "--wait"),
        ([*REQUIRED, "--key-file", "/nowhere"], "/nowhere"),
        (REQUIRED, "ice.whl"),
        ([*REQUIRED, "--else", "1"], "--else"),
    ],
)
def test_wrong_arguments_are_status_2_and_one_line(words, named):
    done = install(*words)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert named in line
    assert "secret" not in line


def test_the_role_gives_options_of_the_script():
    text = (ROLE / "tasks/main.yml").read_text("utf-8")
    [task] = [one for one in yaml.safe_load(text) if one["name"] == "Install and enrol"]
    assert task["no_log"], "the task has the key"
    given = set(re.findall(r"'(--[a-z-]+)'", task["ansible.builtin.command"]["argv"]))
    assert given == {"--gateway", "--package", "--key-file"}
    assert given <= set(re.findall(r"^ {4}(--[a-z-]+)\)", SHELL.read_text("utf-8"), re.MULTILINE))
