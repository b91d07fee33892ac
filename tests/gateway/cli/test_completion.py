"""Shells complete both commands, by click's scripts, as docs/administration.md says."""

from __future__ import annotations

import shutil
import subprocess

import click
import pytest
from click.testing import CliRunner

from client import cli as client_cli
from gateway.cli import main

COMMANDS = {"ice-gateway": main, "ice-client": client_cli.main}


def run(name: str, instruction: str, **environment: str) -> str:
    """What the command prints for a shell; see click's documentation of shell completion."""
    command: click.Group = COMMANDS[name]
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    done = CliRunner().invoke(command, prog_name=name, env={variable: instruction, **environment})
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_it_can_read(name, shell):
    script = run(name, f"{shell}_source")
    assert name in script
    path = shutil.which(shell)
    if path is not None:
        done = subprocess.run(
            [path, "-n"], input=script, text=True, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ice-gateway ices dere", {"deregister"}),
        ("ice-gateway operations run lab-1 --kind rem", {"remote-execute"}),
        ("ice-gateway config sh", {"show"}),
        ("ice-client stat", {"status"}),
    ],
)
def test_commands_and_values_are_completed(words, expected):
    name, *rest = words.split()
    answer = run(name, "bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(rest)))
    assert set(answer.split()) == {f"plain,{each}" for each in expected}
