"""Reads the settings: their defaults, then a TOML file, then the environment, then options.

Pure except for reading the file. Every error names the key, where it was set, and the accepted values.

Tested in tests/unit/runtime/test_settings.py.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from gateway.core.text import decoded
from gateway.runtime.database_url import shown
from gateway.runtime.settings import ENV_PREFIX, SETTINGS, BadOption, BadSetting, Setting, Settings

DEFAULT: Final = "default"
COMMAND_LINE: Final = "command line"
"""Origins of values; others are the path of the file and the name of a variable."""
_BY_KEY: Final = {setting.key: setting for setting in SETTINGS}
_REMOVED: Final = {
    "server.workers": "server.workers is gone: one gateway serves an SQLite file; for several use"
    " PostgreSQL and ice-gateway@.service"
}
"""For each setting of earlier versions, what to do instead."""


def load(
    file: Path | None, environ: Mapping[str, str], options: Mapping[str, object] | None = None
) -> Settings:
    """Read the settings: defaults, then `file`, then `environ`, then `options` (by key).

    Raises:
        BadSetting: a key is unknown, a value is not accepted, or the file cannot be read. `BadOption` for a
            value of `options`.
    """
    return Settings(
        **{each.setting.key.replace(".", "_"): each.parsed for each in read(file, environ, options)}
    )


class Given(NamedTuple):
    """The value of a setting: as it was given, and parsed. `origin` says where it was given."""

    setting: Setting
    raw: object
    parsed: Any
    origin: str


def read(
    file: Path | None, environ: Mapping[str, str], options: Mapping[str, object] | None = None
) -> list[Given]:
    """Every setting with its value and its origin, in the order of `SETTINGS`; otherwise like `load`."""
    values: dict[str, tuple[object, str]] = {
        setting.key: (setting.default, DEFAULT) for setting in SETTINGS
    }
    for key, value in _from_file(file):
        values[key] = (value, str(file))
    for key, value, variable in _from_environment(environ):
        values[key] = (value, variable)
    for key, value in (options or {}).items():
        if key in _REMOVED:
            raise BadOption(_REMOVED[key])
        values[key] = (value, COMMAND_LINE)
    return [
        Given(setting, value, _parse(setting, value, origin), origin)
        for setting in SETTINGS
        for value, origin in [values[setting.key]]
    ]


def misspelt_variables(environ: Mapping[str, str]) -> list[str]:
    """A warning for each variable that would be a setting with two underscores after the section.

    Other variables of the prefix pass in silence: Kubernetes sets ICE_GATEWAY_SERVICE_HOST and its like for a
    service called ice-gateway.
    """
    meant = {setting.variable.replace("__", "_"): setting for setting in SETTINGS}
    return [
        f"the environment variable {variable} is ignored: {meant[variable].key} is set by"
        f" {meant[variable].variable}, with two underscores after the section"
        for variable in sorted(environ)
        if variable in meant
    ]


def _refuse_removed(key: str) -> None:
    if key in _REMOVED:
        raise BadSetting(_REMOVED[key])


def _parse(setting: Setting, value: object, origin: str) -> Any:
    try:
        return setting.parse(value)
    except (ValueError, TypeError, RuntimeError):  # the last from a `~` of a user that there is not
        given = str(value)
        # A second colon may begin a password whose `@` is missing.
        names_file = given.startswith("sqlite:")
        if setting.secret and ({*"@?#"} & {*given} or (given.count(":") > 1 and not names_file)):
            value = shown(given)
        typed = origin == COMMAND_LINE
        raise (BadOption if typed else BadSetting)(
            f"{setting.key} = {value!r} (from {'the ' * typed}{origin}) is not accepted: {setting.accepts}"
        ) from None


def _from_file(file: Path | None) -> list[tuple[str, object]]:
    if file is None:
        return []
    try:
        document = tomllib.loads(decoded(file.read_bytes()))
    except OSError as error:
        raise BadSetting(
            f"the settings file {file} cannot be read: {error.strerror or error}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSetting(f"{file} is not TOML: {error}") from None
    found = []
    for section, entries in document.items():
        if not isinstance(entries, dict):
            raise BadSetting(f"{section} in {file} is outside any section; {_known()}")
        for name, value in entries.items():
            key = f"{section}.{name}"
            _refuse_removed(key)
            if key not in _BY_KEY:
                raise BadSetting(f"{key} in {file} is no setting; {_known(section)}")
            found.append((key, value))
    return found


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, str, str]]:
    by_variable = {setting.variable: setting.key for setting in SETTINGS}
    found = []
    for variable, value in environ.items():
        # Variables without `__`, such as ICE_GATEWAY_CONFIG, are not settings.
        if not variable.startswith(ENV_PREFIX) or "__" not in variable:
            continue
        section, _, name = variable.removeprefix(ENV_PREFIX).lower().partition("__")
        _refuse_removed(f"{section}.{name}")
        key = by_variable.get(variable.upper())
        if key is None:
            raise BadSetting(f"the environment variable {variable} is no setting; {_known()}")
        found.append((key, value, variable))
    return found


def _known(section: str | None = None) -> str:
    keys = [key for key in _BY_KEY if section is None or key.startswith(f"{section}.")]
    return f"known are {', '.join(keys or _BY_KEY)}"
