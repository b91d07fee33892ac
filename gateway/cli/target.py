"""Where a command acts: on a database, or with `--url` over the API of a gateway elsewhere.

Tested in tests/gateway/cli/test_url.py.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from gateway.cli.admin_port import Admin
from gateway.cli.common import (
    Elsewhere,
    elsewhere,
    open_context,
    refuse_misplaced_url,
    run,
    settings_from,
    settings_options,
)
from gateway.cli.output import print_notice, refuse

R = TypeVar("R")
Command = Callable[..., Coroutine[Any, Any, R]]


def with_admin(command: Command[R]) -> Callable[..., R]:
    """Pass an `Admin` to an async command; refuse to run without a database."""
    return _with_admin(command, create=False)


def with_admin_of_new(command: Command[R]) -> Callable[..., R]:
    """Likewise; make the database if it does not exist."""
    return _with_admin(command, create=True)


def _with_admin(command: Command[R], *, create: bool) -> Callable[..., R]:
    @settings_options
    @functools.wraps(command)
    def wrapped(*, config: Path | None, database: str | None, **options: Any) -> R:
        async def work() -> R:
            async with _open(config, database, create=create) as admin:
                return await command(admin, **options)

        return run(work())

    return wrapped


@contextlib.asynccontextmanager
async def _open(config: Path | None, database: str | None, *, create: bool) -> AsyncIterator[Admin]:
    there = elsewhere()
    on_database = config is not None or database is not None
    if on_database:  # typed for this command, so it counts more than a variable
        refuse_misplaced_url(
            "it names a gateway elsewhere, --config and --database a database here"
        )
    if there is None or on_database:
        from gateway.cli.database_admin import DatabaseAdmin

        settings = settings_from(config, {"database.url": database})
        async with open_context(settings, create=create) as context:
            yield DatabaseAdmin(context)
    else:
        async with _over_api(there) as admin:
            yield admin


@contextlib.asynccontextmanager
async def _over_api(there: Elsewhere) -> AsyncIterator[Admin]:
    from gateway.cli.api_admin import ApiAdmin
    from gateway.cli.api_client import Access, ApiClient, BadFile, BadUrl, PlainHttp

    if there.token_file is None:
        raise click.UsageError("--url needs --token-file, or ICE_GATEWAY_TOKEN_FILE")
    try:
        access = Access.of(there.url, there.token_file, there.ca_file, insecure=there.insecure)
        if access.is_readable_by_all:
            print_notice(f"warning: everybody on this machine can read {there.token_file}")
        async with ApiClient.open(access) as client:
            yield ApiAdmin(client)
    except PlainHttp as error:
        refuse(str(error))
    except BadUrl as error:
        raise click.BadParameter(str(error), param_hint="--url") from None
    except BadFile as error:
        refuse(str(error), os.EX_CONFIG)
