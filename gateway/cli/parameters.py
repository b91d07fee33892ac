"""Types of options and arguments that several commands have.

Tested in tests/gateway/cli/test_cli.py.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import click
import msgspec

from client.protocol import JsonTooComplex, check_json
from gateway.core.json_input import check_syntax
from gateway.core.text import decoded
from gateway.runtime.setting_types import lifetime

R = TypeVar("R")


class AbsolutePath(click.Path):
    """A path that is absolute, so that a message that names it can be understood in any folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The absolute path; `-` stays."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        return path if self.allow_dash and str(path) == "-" else path.absolute()


FILE: Final = AbsolutePath(dir_okay=False)
FOLDER: Final = AbsolutePath(file_okay=False)


class Parsed(click.ParamType[R]):
    """An option's value that a function parses.

    `refusal` tells what is accepted where it raises ValueError; without it the error's own text does.
    """

    def __init__(self, name: str, parse: Callable[[str], R], refusal: str | None = None) -> None:
        self.name = name
        self._parse = parse
        self._refusal = refusal

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> R:
        """The parsed value of an argument, or of a default that was parsed before."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ValueError as error:
            refusal = str(error) if self._refusal is None else self._refusal.format(value)
            self.fail(refusal, param, ctx)


_AWARE: Final[Any] = Annotated[datetime, msgspec.Meta(tz=True)]
MOMENT: Final = Parsed[datetime](
    "time",
    functools.partial(msgspec.convert, type=_AWARE),
    "RFC 3339 with a zone, such as 2026-11-22T18:00:00Z",
)
"""A time with its zone."""


def duration_option(parse: Callable[[object], float], accepts: str) -> Parsed[float]:
    """The type of an option that is a duration such as 90d, in seconds, which `parse` bounds as `accepts` says."""
    return Parsed(
        "duration", parse, f"{{!r}} is not a number with s, m, h or d, such as 90d; {accepts}"
    )


DURATION: Final = duration_option(lifetime, "36500d at most")
"""A duration of at most a hundred years, in seconds."""


def _json(value: str) -> bytes:
    """JSON as bytes, from the argument itself, from @FILE, or from standard input with @-."""
    try:
        if value == "@-":
            text = sys.stdin.buffer.read()
        else:
            text = Path(value[1:]).read_bytes() if value.startswith("@") else value.encode()
        text = decoded(text).strip().encode()
        check_syntax(text)
        check_json(text)
    except OSError as error:
        path = Path(value[1:]).absolute()
        raise click.BadParameter(f"{path} cannot be read: {error.strerror}") from None
    except JsonTooComplex as error:
        raise click.BadParameter(str(error)) from None
    return text


JSON: Final = Parsed("JSON|@FILE", _json, "has to be JSON")
"""JSON as bytes."""


def label_changes(texts: Sequence[str], *, removals: bool = False) -> dict[str, str | None]:
    """The labels of arguments KEY=VALUE; with `removals` KEY- is None. Raises `click.UsageError`."""
    labels: dict[str, str | None] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals and not (removals and key.endswith("-")):
            removing = ", KEY- removes one" if removals else ""
            raise click.UsageError(f"{text}: KEY=VALUE sets a label{removing}")
        key = key if equals else key.removesuffix("-")
        if key in labels:
            raise click.UsageError(f"the label {key} is named twice")
        labels[key] = value if equals else None
    return labels


json_option = click.option("--json", "as_json", is_flag=True, help="Print the API's objects.")
