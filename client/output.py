"""What `ice-client` prints, and how it ends.

Tested in tests/client/test_client_cli.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, NoReturn

import click

from client import platform
from client.standard_streams import timed

REFUSED: Final = 1
"""Exit status: refused, or not connected."""
USAGE: Final = 2
"""Exit status: wrong usage."""
MUST_ACT: Final = 3
"""Exit status: a person must act."""


def say(line: str, *, err: bool = False) -> None:
    """Print a line with its time."""
    click.echo(timed(line), err=err)


def warn(sentence: str) -> None:
    """Print a warning with its time on stderr."""
    say(f"ice-client: warning: {sentence}", err=True)


def fail(code: int, reason: object) -> NoReturn:
    """Print why the command ends, and exit with status `code`."""
    click.echo(f"ice-client: {reason}", err=True)
    sys.exit(code)


def default_folder() -> Path:
    """The user's state folder; without a home folder the command ends."""
    try:
        return platform.default_state_dir()
    except RuntimeError:
        fail(USAGE, "this user has no home folder: name a folder with --state-dir")
