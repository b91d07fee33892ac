"""The commands to paste: what the client's command line accepts, and quoted for their shell."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from client.cli import main
from gateway.core.start_commands import (
    KEY_FILE,
    enrol_commands,
    silent_enrol_commands,
    start_commands,
)


@pytest.mark.parametrize("with_token", [True, False])
@pytest.mark.parametrize(
    ("url", "insecure"),
    [
        ("https://ice.example.com/a", False),
        ("http://127.0.0.1:8440", False),
        ("http://localhost:8440", False),
        ("http://ice.example.com", True),
        ("https://x;$(id)'", False),
    ],
)
def test_the_client_takes_the_commands(url, insecure, with_token):
    shell, powershell, service = start_commands(url, "lab-1", with_token=with_token)
    program, command, *options = shlex.split(shell.text)
    assert (program, command) == ("ice/bin/ice-client", "run")
    context = main.commands["run"].make_context("run", options, resilient_parsing=True)
    assert context.params["gateway"] == url
    assert context.params["token_file"] == ("lab-1.token" if with_token else None)
    assert context.params["insecure"] is insecure
    assert ("lab-1.token" in powershell.text) is ("lab-1.token" in service.text) is with_token
    assert ("--insecure" in powershell.text) is ("--insecure" in service.text) is insecure
    [written] = [line for line in service.text.splitlines() if line.startswith("printf")]
    assert f"ICE_GATEWAY={url}" in shlex.split(written)
    documented = (Path(__file__).parents[3] / "docs" / "client.md").read_text(encoding="utf-8")
    for line in service.text.splitlines():
        if line != written:
            assert f"# {line.replace('lab-1.token', 'build-7.token')}" in documented, line


def test_powershell_takes_odd_text_as_text():
    [_, powershell, _] = start_commands("https://x;$(id)'", "lab-1", with_token=False)
    assert powershell.text.endswith("run --gateway 'https://x;$(id)'''")


def params(line):
    """What the client takes of a command in a POSIX shell."""
    program, command, *options = shlex.split(line)
    assert program == "ice/bin/ice-client"
    context = main.commands[command].make_context(command, options, resilient_parsing=True)
    return {"command": command, **context.params}


@pytest.mark.parametrize("url", ["https://ice.example.com/a", "http://ice.example.com"])
@pytest.mark.parametrize("names_user", [True, False])
def test_the_client_takes_the_commands_that_enrol(url, names_user):
    shell, powershell = enrol_commands(url, names_user=names_user)
    first, *then = map(params, shell.text.splitlines())
    assert first["enrolment_key_file"] == KEY_FILE
    assert first["command"] == ("enrol" if names_user else "run")
    assert first.get("user") == ("USER" if names_user else None)
    assert [each["command"] for each in then] == ["run"] * names_user
    for each in (first, *then):
        assert each["gateway"] == url
        assert each["insecure"] is url.startswith("http:")
    assert powershell.text.count("ice\\Scripts\\ice-client.exe") == len(shell.text.splitlines())


def test_a_management_tool_enrols_in_one_line_without_output():
    shell, powershell = silent_enrol_commands("https://ice.example.com", names_user=False)
    enrol, _, end = shell.text.partition(" >/dev/null 2>&1")
    assert params(enrol)["enrolment_key_file"] == KEY_FILE
    assert end == f" && rm -f {KEY_FILE}"
    assert "\n" not in shell.text + powershell.text
    assert powershell.text.endswith("; exit $LASTEXITCODE")
    assert "*> $null" in powershell.text
