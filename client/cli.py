"""The `ice-client` command.

Exit status: 0 done, 1 refused (and `status`: not connected), 2 usage, 3 a person must act. The reason
is one line on standard error. Source: docs/client.md. `client.__main__` starts it and handles Ctrl-C.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import click
import msgspec

from client import __version__, consent, eventloop, platform, status
from client.agent import IceClient, Outcome
from client.backoff import ClosedByUs, Stopped
from client.credentials import (
    EnrolmentSecret,
    IdentityProblem,
    NotAToken,
    Secret,
    Token,
)
from client.endpoint import BadAddress, BadCertificateFile, PlainHttp
from client.enrolment import Enrolled, Enroller
from client.events import Event
from client.handlers import BadHandlers, register, settings_of
from client.identity import DamagedDecision, FolderUnusable, StateFolder, has_token
from client.options import folder_option, option, reaches_gateway
from client.protocol import Accepts, OperationKind
from client.standard_streams import decoupled, log_to_stderr, timed

_REFUSED: Final = 1
_USAGE: Final = 2
_MUST_ACT: Final = 3
_SECRET_FILE_LIMIT: Final = 64 * 1024

_S = TypeVar("_S", bound=Secret)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ice-client")
def main() -> None:
    """Connect this machine to an ICE gateway."""


# --- run ---------------------------------------------------------------------------------------


@main.command()
@option(
    "--token-file",
    metavar="FILE|-",
    help="The registration token, needed once; `-` reads it from standard input.",
)
@option(
    "--enrolment-key-file",
    metavar="FILE|-",
    help="The secret of an enrolment key, read only while there is no token.",
)
@reaches_gateway
@option(
    "--handlers",
    metavar="MODULE",
    help="A module, or a path ending in .py, whose register(ice, settings) adds handlers for operations.",
)
@option(
    "--accepts",
    metavar="KINDS",
    help="What others than this ICE's user may send: all, none, or kinds with commas between them; what"
    " `ice-client accept` has stored counts before it.",
)
@decoupled()
def run(
    *,
    gateway: str | None,
    token_file: str | None,
    enrolment_key_file: str | None,
    state_dir: Path | None,
    ca_file: Path | None,
    insecure: bool,
    handlers: str | None,
    accepts: str | None,
    config: Path | None,
) -> None:
    """Register on the first run, connect, and stay connected until stopped."""
    folder = StateFolder(state_dir or _default_folder())
    options = _options(ca_file, insecure, handlers, config, accepts)
    try:
        kinds = None if accepts is None else consent.parsed(accepts)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--accepts") from None
    with _refusals():
        token = None
        if token_file is not None:
            token = _given_token(token_file, folder, enrols=enrolment_key_file is not None)
        place = _Place(_gateway_of(gateway, folder), folder.path, ca_file, insecure)
        enroller = None
        if enrolment_key_file is not None and token is None and folder.token() is None:
            enroller = _enroller(place, enrolment_key_file, options)
        client = IceClient(
            place.gateway,
            state_dir=place.folder,
            token=token,
            ca_file=place.ca_file,
            insecure=place.insecure,
            accepts=kinds,
            options=options,
            observe=_print_event,
        )
        if handlers is not None:
            register(handlers, client, settings_of(config))

        def stop() -> None:
            if enroller is not None:
                enroller.stop()
            client.stop()

        log_to_stderr()
        outcome = eventloop.run(lambda: _run(client, enroller), stop)
    if not isinstance(outcome, ClosedByUs):
        _fail(_MUST_ACT, outcome)
    _say("stopped on request")


async def _run(client: IceClient, enroller: Enroller | None) -> Outcome:
    if enroller is not None:
        outcome = await enroller.run()
        if not isinstance(outcome, Enrolled):
            return outcome
    async with client:
        return await client.wait()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """End the command for what keeps a client from its start."""
    try:
        yield
    except (FolderUnusable, PlainHttp, BadCertificateFile, BadHandlers) as refusal:
        _fail(_REFUSED, refusal)
    except BadAddress as error:
        raise click.BadParameter(str(error), param_hint="--gateway") from None
    except IdentityProblem as problem:
        _fail(_MUST_ACT, problem)


def _gateway_of(given: str | None, folder: StateFolder) -> str:
    gateway = given or folder.state().gateway
    if gateway is None:
        raise click.UsageError("Missing option '--gateway': this ICE has not been run before.")
    return gateway


def _options(
    ca_file: Path | None,
    insecure: bool,  # noqa: FBT001 - click gives a flag
    handlers: str | None,
    config: Path | None,
    accepts: str | None = None,
) -> list[str]:
    """The options for starting the client again, from any folder."""
    if handlers is not None and handlers.endswith(".py"):
        handlers = str(Path(handlers).absolute())
    named = {
        "--ca-file": ca_file and str(ca_file.absolute()),
        "--handlers": handlers,
        "--accepts": accepts,
        "--config": config and str(config.absolute()),
    }
    given = [word for name, value in named.items() if value for word in (name, value)]
    return [*given, *(["--insecure"] if insecure else [])]


def _given_token(name: str, folder: StateFolder, *, enrols: bool) -> Token | None:
    """The token in a file or on standard input; None if it is unusable and there is another way.

    Raises `IdentityProblem`.
    """
    try:
        return _read_secret(name, Token)
    except NotAToken as problem:
        # The file is needed once: it may be deleted while a service unit still names it.
        stored = folder.token() is not None
        if not stored and not enrols:
            raise
        _warn(f"{problem} (using the {'stored token' if stored else 'enrolment key'})")
        return None


def _read_secret(name: str, kind: type[_S]) -> _S:
    """The secret in a file or on standard input; raises the `problem` of its kind."""
    try:
        if name == "-" and sys.stdin.isatty():
            return kind(getpass.getpass(f"{kind.noun.capitalize()}: "))
        with click.open_file(name, "rb") as file:
            return kind.from_bytes(file.read(_SECRET_FILE_LIMIT))
    except kind.problem as problem:
        raise kind.problem(f"{'standard input' if name == '-' else name}: {problem}") from None
    except OSError as error:
        raise kind.problem(
            f"the {kind.noun} file {name} cannot be read: {error.strerror}"
        ) from None


def _print_event(event: Event) -> None:
    if event.kind == "warning":
        _warn(str(event))
    else:
        _say(str(event))


# --- enrol -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """The gateway and the state folder of a command."""

    gateway: str
    folder: Path
    ca_file: Path | None
    insecure: bool


@main.command()
@option(
    "--enrolment-key-file",
    metavar="FILE|-",
    required=True,
    help="The secret of an enrolment key; `-` reads it from standard input.",
)
@click.option("--name", help="The name of the ICE.  [default: made of this machine's host name]")
@click.option("--user", help="The user of the ICE, for a key that lets the machine choose.")
@reaches_gateway
@decoupled()
def enrol(
    *,
    gateway: str | None,
    enrolment_key_file: str,
    name: str | None,
    user: str | None,
    state_dir: Path | None,
    ca_file: Path | None,
    insecure: bool,
    config: Path | None,
) -> None:
    """Get an ICE of its own for this machine with an enrolment key; waits for an approval.

    Exit status: 0 enrolled, 1 stopped before, 3 refused.
    """
    folder = StateFolder(state_dir or _default_folder())
    with _refusals():
        place = _Place(_gateway_of(gateway, folder), folder.path, ca_file, insecure)
        if has_token(folder, place.gateway):
            _say("this ICE already has a token")
            return
        options = _options(ca_file, insecure, None, config)
        enroller = _enroller(place, enrolment_key_file, options, name, user)
        log_to_stderr()
        outcome = eventloop.run(enroller.run, enroller.stop)
    match outcome:
        case ClosedByUs():
            _fail(_REFUSED, "stopped on request: this ICE is not enrolled yet")
        case Stopped():
            _fail(_MUST_ACT, outcome)


def _enroller(
    place: _Place,
    key_file: str,
    options: list[str],
    name: str | None = None,
    user: str | None = None,
) -> Enroller:
    """Raises `NotAnEnrolmentKey`."""
    secret = _read_secret(key_file, EnrolmentSecret)
    if key_file != "-":
        options = [*options, "--enrolment-key-file", str(Path(key_file).absolute())]
        if platform.open_to_others(Path(key_file)):
            _warn(
                f"other users can read or change {key_file}, and could enrol machines with it: make it readable"
                " by the client's user alone"
            )
    return Enroller(
        place.gateway,
        secret,
        name=name,
        user=user,
        state_dir=place.folder,
        ca_file=place.ca_file,
        insecure=place.insecure,
        options=options,
        observe=_print_event,
    )


# --- accept ------------------------------------------------------------------------------------


@main.command()
@click.argument("kinds", nargs=-1, type=click.Choice([kind.value for kind in OperationKind]))
@click.option("--none", "nothing", is_flag=True, help="Others may send nothing.")
@click.option("--all", "everything", is_flag=True, help="Others may send every kind.")
@folder_option
def accept(
    kinds: tuple[str, ...],
    *,
    nothing: bool,
    everything: bool,
    state_dir: Path | None,
) -> None:
    """Say which KINDs others than this ICE's user may send it; without any, show it.

    Others are admins, API tokens, pools and other users' schedules. A running client follows within 5 seconds.
    """
    given = [bool(kinds), nothing, everything]
    if sum(given) > 1:
        raise click.UsageError("Give kinds, --none or --all, one of them.")
    folder = StateFolder(state_dir or _default_folder())
    try:
        if any(given):
            accepts = None if everything else consent.checked(kinds)
            folder.store_decision(Accepts(accepts=accepts))
        decision, state = folder.decision(), folder.state()
    except (FolderUnusable, DamagedDecision) as problem:
        _fail(_REFUSED, problem)
    except IdentityProblem as problem:
        _fail(_MUST_ACT, problem)
    found = state.accepts if decision is None else decision.accepts
    click.echo(f"others may send: {consent.described(found)}")
    if any(given) and state.gateway is None:
        click.echo(
            f"ice-client: no client was started with the state folder {folder.path} yet", err=True
        )
    if state.ice_type == "ci-cd":
        click.echo("ice-client: this ICE is ci-cd, for which it counts for nothing", err=True)


# --- status ------------------------------------------------------------------------------------


@main.command(name="status")
@folder_option
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
