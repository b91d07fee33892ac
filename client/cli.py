"""The `ice-client` command.

Exit status: 0 done, 1 refused (and `status`: not connected), 2 usage, 3 a person must act. The reason
is one line on standard error. Source: docs/client.md. `client.__main__` starts it and handles Ctrl-C.
"""

from __future__ import annotations

import getpass
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn

import click
import msgspec

from client import __version__, eventloop, platform, status
from client.agent import ClosedByUs, IceClient, Outcome
from client.credentials import IdentityProblem, NotAToken, Token
from client.endpoint import BadAddress, BadCertificateFile, PlainHttp
from client.events import Event
from client.handlers import BadHandlers, register, settings_of
from client.identity import FolderUnusable, StateFolder
from client.standard_streams import decoupled, log_to_stderr, timed

_REFUSED: Final = 1
_USAGE: Final = 2
_MUST_ACT: Final = 3
_TOKEN_FILE_LIMIT: Final = 64 * 1024

_folder_option = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, readable=False, path_type=Path),
    help="The folder for the key and the token.  [default: the user's state folder]",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ice-client")
def main() -> None:
    """Connect this machine to an ICE gateway."""


# --- run ---------------------------------------------------------------------------------------


@main.command()
@click.option(
    "--gateway",
    metavar="URL",
    help="https://host[:port][/prefix]  [default: that of the last run]",
)
@click.option(
    "--token-file",
    metavar="FILE|-",
    help="The registration token, needed once; `-` reads it from standard input.",
)
@_folder_option
@click.option(
    "--ca-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Certificates (PEM) to trust besides the system's.",
)
@click.option("--insecure", is_flag=True, help="Allow plain http to another machine.")
@click.option(
    "--handlers",
    metavar="MODULE",
    help="A module, or a path ending in .py, whose register(ice, settings) adds handlers for operations.",
)
@click.option(
    "--config",
    envvar="ICE_CLIENT_CONFIG",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Settings (TOML) for the handlers (or ICE_CLIENT_CONFIG).",
)
@decoupled()
def run(
    *,
    gateway: str | None,
    token_file: str | None,
    state_dir: Path | None,
    ca_file: Path | None,
    insecure: bool,
    handlers: str | None,
    config: Path | None,
) -> None:
    """Register on the first run, connect, and stay connected until stopped."""
    folder = StateFolder(state_dir or _default_folder())
    try:
        token = None if token_file is None else _given_token(token_file, folder)
        gateway = gateway or folder.state().gateway
        if gateway is None:
            raise click.UsageError("Missing option '--gateway': this ICE has not been run before.")
        client = IceClient(
            gateway,
            state_dir=folder.path,
            token=token,
            ca_file=ca_file,
            insecure=insecure,
            options=_options(ca_file, insecure, handlers, config),
            observe=_print_event,
        )
        if handlers is not None:
            register(handlers, client, settings_of(config))
        log_to_stderr()
        outcome = eventloop.run(lambda: _run(client), client.stop)
    except (FolderUnusable, PlainHttp, BadCertificateFile, BadHandlers) as refusal:
        _fail(_REFUSED, refusal)
    except BadAddress as error:
        raise click.BadParameter(str(error), param_hint="--gateway") from None
    except IdentityProblem as problem:
        _fail(_MUST_ACT, problem)
    if not isinstance(outcome, ClosedByUs):
        _fail(_MUST_ACT, outcome)
    _say("stopped on request")


async def _run(client: IceClient) -> Outcome:
    async with client:
        return await client.wait()


def _options(
    ca_file: Path | None,
    insecure: bool,  # noqa: FBT001 - click gives a flag
    handlers: str | None,
    config: Path | None,
) -> list[str]:
    """The options for starting the client again, from any folder."""
    if handlers is not None and handlers.endswith(".py"):
        handlers = str(Path(handlers).absolute())
    named = {
        "--ca-file": ca_file and str(ca_file.absolute()),
        "--handlers": handlers,
        "--config": config and str(config.absolute()),
    }
    given = [word for name, value in named.items() if value for word in (name, value)]
    return [*given, *(["--insecure"] if insecure else [])]


def _given_token(name: str, folder: StateFolder) -> Token | None:
    """The token in a file or on standard input; None if it is unusable and another one is stored.

    Raises `IdentityProblem`.
    """
    try:
        return _read_token(name)
    except NotAToken as problem:
        # The file is needed once: it may be deleted while a service unit still names it.
        if folder.token() is None:
            raise
        _warn(f"{problem} (using the stored token)")
        return None


def _read_token(name: str) -> Token:
    """Raises `NotAToken`."""
    try:
        if name == "-" and sys.stdin.isatty():
            return Token(getpass.getpass("Registration token: "))
        with click.open_file(name, "rb") as file:
            return Token.from_bytes(file.read(_TOKEN_FILE_LIMIT))
    except NotAToken as problem:
        raise NotAToken(f"{'standard input' if name == '-' else name}: {problem}") from None
    except OSError as error:
        raise NotAToken(f"the token file {name} cannot be read: {error.strerror}") from None


def _print_event(event: Event) -> None:
    if event.kind == "warning":
        _warn(str(event))
    else:
        _say(str(event))


# --- status ------------------------------------------------------------------------------------


@main.command(name="status")
@_folder_option
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
def show_status(state_dir: Path | None, as_json: bool) -> None:  # noqa: FBT001 - click gives a flag
    """Say whether this ICE is registered and connected, and if not, what to do.

    Exit status: 0 connected, 1 not connected, 3 a person must act first.
    """
    try:
        folder = StateFolder(state_dir or _default_folder())
        found = status.Found(
            folder=str(folder.path.absolute()),
            named=state_dir is not None,
            exists=folder.exists(),
            has_key=folder.key() is not None,
            token=folder.token(),
            # Read before the state: a client that ends in between has then written its state.
            running=folder.in_use(),
            state=folder.state(),
        )
    except FolderUnusable as problem:
        _fail(_REFUSED, problem)
    except IdentityProblem as problem:
        _fail(_MUST_ACT, problem)
    report = status.report(found)
    if as_json:
        # `json.dumps` writes ASCII, which keeps a folder name that is not UTF-8.
        click.echo(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        click.echo("\n".join(status.lines(found, report, now)))
    if not report.connected:
        sys.exit(_MUST_ACT if report.must_act else _REFUSED)


# --- both --------------------------------------------------------------------------------------


def _default_folder() -> Path:
    try:
        return platform.default_state_dir()
    except RuntimeError:
        _fail(_USAGE, "this user has no home folder: name a folder with --state-dir")


def _say(line: str, *, err: bool = False) -> None:
    """Print a line with its time."""
    click.echo(timed(line), err=err)


def _warn(sentence: str) -> None:
    _say(f"ice-client: warning: {sentence}", err=True)


def _fail(code: int, reason: object) -> NoReturn:
    click.echo(f"ice-client: {reason}", err=True)
    sys.exit(code)
