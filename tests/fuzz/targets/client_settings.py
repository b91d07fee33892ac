"""The client's TOML file: each command reads it, or refuses it in one line with its exit status."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import click

from client.cli import main
from tests.fuzz.target import Target, require
from tests.fuzz.targets.settings import file_with, one_line

_STATUS = (1, 2)
"""1: the file is not TOML; 2: wrong usage."""


def read(command: str, words: list[str]) -> dict[str, Any]:
    """The parameters of a command with these words. Raises what ends it."""
    with main.commands[command].make_context(command, words) as context:
        return dict(context.params)


def check(data: bytes, product: Any) -> None:
    """See the module."""
    names = sorted(main.commands)
    command = names[data[0] % len(names)] if data else "run"
    words = ["--config", str(file_with(data[1:]))]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found = product(command, words)
    except click.UsageError as error:
        one_line(error.format_message())
        return
    except click.exceptions.Exit as error:
        require(error.exit_code in _STATUS, f"status {error.exit_code}")
        one_line(said.getvalue().removesuffix("\n"))
        return
    require(all(name.isidentifier() for name in found), f"{found}")


TARGET = Target(
    read,
    check,
    tuple(
        bytes([number]) + text
        for number in range(len(main.commands))
        for text in (
            b'gateway = "https://gateway.example"\nstate_dir = "state"\nhandlers = "x.py"\ninsecure = true\n',
            b'insecure = "yes"\n',
            b"gateway = 1\n",
            b'ca_file = "~nobody-there/ca.pem"\n[scrape]\nx = 1\n',
            b'state_dir = "\\u0000"\n',
            b"colour = 1\n",
            b"= 1\n",
        )
    ),
    (
        b"gateway",
        b"state_dir",
        b"ca_file",
        b"log_file",
        b"handlers",
        b"accepts",
        b"token_file",
        b"~",
        b'"""',
        b"[[x]]",
    ),
)
