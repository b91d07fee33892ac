"""`ice-gateway config`: shows every setting, its value, and where that comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from gateway.cli.common import (
    exit_on_error,
    read_settings,
    refuse_misplaced_url,
    settings_options,
    warn_of_variables,
)
from gateway.cli.output import show_json, show_table
from gateway.cli.parameters import json_option
from gateway.runtime.database_url import shown
from gateway.runtime.setting_sources import Given, read
from gateway.runtime.setting_types import texts
from gateway.runtime.settings import BadSetting


@click.group()
def config() -> None:
    """Show the settings."""


@config.command()
@settings_options
@json_option
def show(*, config: Path | None, database: str | None, as_json: bool) -> None:
    """Show every setting, its value, and where it comes from; no password is shown.

    The source is a file, an environment variable, the command line, or the default. Options of `serve`, such as
    --port, are not known here.
    """
    refuse_misplaced_url("this command reads the settings of this machine")
    warn_of_variables()
    try:
        found = read_settings(config, {"database.url": database}, read)
    except BadSetting as error:
        exit_on_error(error)
    rows = [(each.setting.key, value_of(each), each.origin) for each in found]
    if as_json:
        show_json([{"key": key, "value": value, "source": origin} for key, value, origin in rows])
    else:
        show_table(
            ("KEY", "VALUE", "SOURCE"),
            [(key, toml(value), origin) for key, value, origin in rows],
        )


def value_of(given: Given) -> Any:
    """The value as the settings file would have it, also if a variable or an option gave it, without a password."""
    if given.setting.secret:
        return shown(str(given.parsed))
    if isinstance(given.parsed, bool | int):
        return given.parsed
    if isinstance(given.parsed, Path):
        return str(given.parsed)
    if isinstance(given.raw, str) and isinstance(given.setting.default, list):
        return texts(given.raw)
    return given.raw


def toml(value: object) -> str:
    """A value of a setting in TOML: JSON, but for the equals sign in a table."""
    if isinstance(value, Mapping):
        entries = (f"{toml(key)} = {toml(each)}" for key, each in value.items())
        return f"{{{', '.join(entries)}}}"
    return msgspec.json.encode(value).decode()
