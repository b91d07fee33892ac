"""Loads the module of `ice-client run --handlers`, whose `register` adds handlers to an ICE.

    def register(ice, settings):
        @ice.operation("execute")
        async def execute(operation, report):
            ...

`settings` comes from the TOML file of `--config`. Only the operator of the client chooses both: nothing that the
gateway sends can name code or files.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from client.agent import IceClient
from client.errors import described, one_line
from client.exceptions import IceClientError
from client.text import decoded

Settings = Mapping[str, Any]


class BadHandlers(IceClientError):
    """The module or its settings cannot be used; the text is one line for a person."""


def settings_of(file: Path | None) -> Settings:
    """The content of the settings file; empty without one. Raises `BadHandlers`."""
    if file is None:
        return {}
    try:
        return tomllib.loads(decoded(file.read_bytes()))
    except OSError as error:
        raise BadHandlers(
            f"the settings file {file} cannot be read: {error.strerror or error}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadHandlers(f"{file} is not TOML: {error}") from None


def register(name: str, ice: IceClient, settings: Settings) -> None:
    """Give `ice` the handlers of a module: an importable name, or a path that ends in .py.

    Raises `BadHandlers`.
    """
    try:
        module = _from_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except KeyboardInterrupt:  # Ctrl-C during the import
        raise
    except BaseException as error:
        reason = one_line(described(error))
        raise BadHandlers(f"the handlers {name} cannot be imported: {reason}") from error
    if not callable(getattr(module, "register", None)):
        raise BadHandlers(f"the handlers {name} have no function register(ice, settings)")
    try:
        module.register(ice, settings)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = str(error) if isinstance(error, IceClientError) else one_line(described(error))
        raise BadHandlers(f"the handlers {name} cannot be used: {reason}") from error


def _from_file(path: Path) -> ModuleType:
    # Not the name of the file, which may be that of another module: `client.py`, `json.py`.
    name = f"ice_handlers_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and msgspec look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
