"""`ice-gateway users`: the users of the admin API and page, to whom ICEs are tagged.

Tested in tests/gateway/cli/test_cli.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO, Final

import click
import msgspec

from gateway.cli.admin_port import Admin
from gateway.cli.leavers import (
    DisableCommand,
    Wanted,
    disable_leaver,
    ices_option,
    tokens_option,
)
from gateway.cli.output import refuse, show_list
from gateway.cli.parameters import FILE, json_option
from gateway.cli.target import with_admin, with_admin_of_new
from gateway.core.accounts import Origin
from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.core.text import UTF_16, decoded
from gateway.services.passwords import RULE

_MAX_INPUT = 64 * 1024
"""Bytes that are read from standard input; a password is shorter."""
_HEADINGS: Final = (
    *("NAME", "ROLE", "CREATED", "DISABLED", "PASSWORD", "ORIGIN", "SUBJECT", "ICES", "LOGINS"),
    "LAST LOGIN",
)
_role = click.Choice([role.value for role in Role])
from_stdin = click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input."
)
from_file = click.option(
    "--password-file",
    type=FILE,
    help="Read the password from the first line of a file.",
)


@click.group()
def users() -> None:
    """Add users, change their roles and passwords, disable them."""


@users.command()
@click.argument("name")
@click.option("--role", type=_role, required=True, help="The rights of the user.")
@from_stdin
@from_file
@click.option(
    "--no-password", is_flag=True, help="For a user who never logs in and only owns ICEs."
)
@with_admin_of_new
async def add(
    admin: Admin,
    name: str,
    role: str,
    *,
    password_stdin: bool,
    password_file: Path | None,
    no_password: bool,
) -> None:
    """Add a user; ask for the password on a terminal."""
    if password_stdin + (password_file is not None) + no_password > 1:
        raise click.UsageError(
            "--password-stdin, --password-file and --no-password exclude each other"
        )
    new = {"name": name, "role": role}
    if not no_password:
        new["password"] = ask_password(from_stdin=password_stdin, file=password_file).reveal()
    await admin.add_user(new)


def ask_password(*, from_stdin: bool = False, file: Path | None = None) -> Secret:
    """Read the password from standard input or a file, or ask for it twice without echo."""
    if from_stdin:
        text = _first_line(sys.stdin.buffer)
    elif file is not None:
        try:
            with file.open("rb") as stream:
                text = _first_line(stream)
        except OSError as error:
            refuse(f"the password file {file.absolute()} cannot be read: {error.strerror}")
    elif sys.stdin.isatty():
        text = click.prompt(f"Password ({RULE})", hide_input=True, confirmation_prompt=True)
    else:
        raise click.UsageError(
            "there is no terminal to ask on: use --password-stdin or --password-file"
        )
    return Secret(text)


def _first_line(file: BinaryIO) -> str:
    data = file.readline(_MAX_INPUT)
    if data.startswith(UTF_16):
        data += file.read(_MAX_INPUT)  # the end of a line can only be found after decoding
    try:
        return decoded(data).partition("\n")[0].rstrip("\r")
    except UnicodeDecodeError:
        refuse("password: not text in UTF-8")


@users.command("list")
@json_option
@with_admin
async def list_users(admin: Admin, *, as_json: bool) -> None:
    """List all users."""
    documents = [msgspec.structs.asdict(user) async for page in admin.users() for user in page]
    show_list(documents, _HEADINGS, as_json=as_json)


@users.command(cls=DisableCommand)
@click.argument("name")
@ices_option
@tokens_option
@with_admin
async def disable(admin: Admin, name: str, *, wanted: Wanted, tokens: Path | None) -> None:
    """Disable a user, end their logins and API tokens, and say what becomes of their ICEs."""
    await disable_leaver(admin, name, wanted, tokens)


@users.command()
@click.argument("name")
@with_admin
async def enable(admin: Admin, name: str) -> None:
    """Enable a disabled user again, and their API tokens that have neither expired nor been revoked."""
    await admin.change_user(name, {"disabled": False})


@users.command("set-role")
@click.argument("name")
@click.argument("role", type=_role)
@with_admin
async def set_role(admin: Admin, name: str, role: str) -> None:
    """Change a user's role."""
    await admin.change_user(name, {"role": role})


@users.command("set-login")
@click.argument("name")
@click.argument("origin", type=click.Choice([origin.value for origin in Origin]))
@click.option(
    "--subject", metavar="SUB", help="The issuer's name of the user, their `sub`; for sso."
)
@with_admin
async def set_login(admin: Admin, name: str, origin: str, *, subject: str | None) -> None:
    """Have a user log in by single sign-on, as SUB of the issuer, or by password.

    The logins of the user end. For sso their password is deleted; for local, set one.
    """
    if (subject is None) is (origin == Origin.SSO):
        raise click.UsageError("sso needs --subject, and local has none")
    named = {} if subject is None else {"subject": subject}
    await admin.change_user(name, {"origin": origin, **named})


@users.command()
@click.option(
    "--from",
    "file",
    type=FILE,
    required=True,
    help="A CSV file with the columns user and subject.",
)
@with_admin
async def link(admin: Admin, *, file: Path) -> None:
    """Link many users to their subjects at the issuer, as `set-login NAME sso` does."""
    from gateway.cli.user_links import link_users

    await link_users(admin, file)


@users.command("set-password")
@click.argument("name")
@from_stdin
@from_file
@with_admin
async def set_password(
    admin: Admin, name: str, *, password_stdin: bool, password_file: Path | None
) -> None:
    """Change a user's password and end their logins; ask for it on a terminal."""
    if password_stdin and password_file is not None:
        raise click.UsageError("--password-stdin and --password-file exclude each other")
    password = ask_password(from_stdin=password_stdin, file=password_file)
    await admin.change_user(name, {"password": password.reveal()})
