"""The `ice-client` command.

Exit status: 0 done, 1 refused (and `status`: not connected), 2 usage, 3 a person must act. The reason
is one line on standard error. Source: docs/client.md. `client.__main__` starts it and handles Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import click

from client import __version__, consent, eventloop, platform
from client.agent import IceClient, Outcome
from client.backoff import ClosedByUs, Stopped
from client.conformance.cli import conformance
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
from client.identity import FolderUnusable, StateFolder, has_token
from client.log_file import with_log_file
from client.options import is_file, option, reaches_gateway
from client.output import MUST_ACT, REFUSED, default_folder, fail, say, warn
from client.standard_streams import log_to_stderr
from client.state_commands import accept, show_status
from client.systemd import ServiceManager

_SECRET_FILE_LIMIT: Final = 64 * 1024

_S = TypeVar("_S", bound=Secret)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ice-client")
def main() -> None:
    """Connect this machine to an ICE gateway."""


main.add_command(conformance)


# --- run ---------------------------------------------------------------------------------------


@main.command()
@option(
    "--token-file",
    metavar="FILE|-",
    path=is_file,
    help="The registration token, needed once; `-` reads it from standard input.",
)
@option(
    "--enrolment-key-file",
    metavar="FILE|-",
    path=is_file,
    help="The secret of an enrolment key, read only while there is no token.",
)
@reaches_gateway
@option(
    "--handlers",
    metavar="MODULE",
    path=lambda name: name.endswith(".py"),
    help="A module, or a path ending in .py, whose register(ice, settings) adds handlers for operations.",
)
@option(
    "--accepts",
    metavar="KINDS",
    help="What others than this ICE's user may send: all, none, or kinds with commas between them; what"
    " `ice-client accept` has stored counts before it.",
)
@with_log_file
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
    log_file: Path | None,
    config: Path | None,
) -> None:
    """Register on the first run, connect, and stay connected until stopped."""
    folder = StateFolder(state_dir or default_folder())
    options = _options(
        ca_file=ca_file,
        insecure=insecure,
        config=config,
        log_file=log_file,
        handlers=handlers,
        accepts=accepts,
    )
    try:
        kinds = None if accepts is None else consent.parsed(accepts)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--accepts") from None
    manager = ServiceManager()
    observe = _observer(manager)
    with _refusals():
        token = None
        if token_file is not None:
            token = _given_token(token_file, folder, enrols=enrolment_key_file is not None)
        place = _Place(_gateway_of(gateway, folder), folder.path, ca_file, insecure)
        enroller = None
        if enrolment_key_file is not None and token is None and folder.token() is None:
            enroller = _enroller(place, enrolment_key_file, options, observe)
        client = IceClient(
            place.gateway,
            state_dir=place.folder,
            token=token,
            ca_file=place.ca_file,
            insecure=place.insecure,
            accepts=kinds,
            options=options,
            observe=observe,
        )
        if handlers is not None:
            register(handlers, client, settings_of(config))

        def stop() -> None:
            manager.stopping()
            if enroller is not None:
                enroller.stop()
            client.stop()

        log_to_stderr()
        outcome = eventloop.run(lambda: _run(client, enroller, manager), stop)
    if not isinstance(outcome, ClosedByUs):
        fail(MUST_ACT, outcome)
    say("stopped on request")


async def _run(client: IceClient, enroller: Enroller | None, manager: ServiceManager) -> Outcome:
    with manager.watched(asyncio.get_running_loop()):
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
        fail(REFUSED, refusal)
    except BadAddress as error:
        raise click.BadParameter(str(error), param_hint="--gateway") from None
    except IdentityProblem as problem:
        fail(MUST_ACT, problem)


def _gateway_of(given: str | None, folder: StateFolder) -> str:
    gateway = given or folder.state().gateway
    if gateway is None:
        raise click.UsageError("Missing option '--gateway': this ICE has not been run before.")
    return gateway


def _options(
    *,
    ca_file: Path | None,
    insecure: bool,
    config: Path | None,
    log_file: Path | None,
    handlers: str | None = None,
    accepts: str | None = None,
) -> list[str]:
    """The options for starting the client again, from any folder."""
    if handlers is not None and handlers.endswith(".py"):
        handlers = str(Path(handlers).absolute())
    named = {
        "--ca-file": ca_file and str(ca_file.absolute()),
        "--handlers": handlers,
        "--accepts": accepts,
        "--log-file": log_file and str(log_file.absolute()),
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
        warn(f"{problem} (using the {'stored token' if stored else 'enrolment key'})")
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
        warn(str(event))
    else:
        say(str(event))


def _observer(manager: ServiceManager) -> Callable[[Event], None]:
    """Print each event, and tell systemd.

    An event means that the state folder is locked, so the start is complete. Whether the gateway can be reached
    does not count: a boot must not wait for it, and a restart would not help.
    """
    started = False

    def observe(event: Event) -> None:
        nonlocal started
        _print_event(event)
        if not started:
            manager.ready()
            started = True
        # The other kinds say nothing of the connection, or less than the one before.
        if event.kind not in ("warning", "accepts", "reconnecting"):
            manager.status(str(event))

    return observe


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
    path=is_file,
    required=True,
    help="The secret of an enrolment key; `-` reads it from standard input.",
)
@option("--name", help="The name of the ICE.  [default: made of this machine's host name]")
@option("--user", help="The user of the ICE, for a key that lets the machine choose.")
@reaches_gateway
@with_log_file
def enrol(
    *,
    gateway: str | None,
    enrolment_key_file: str,
    name: str | None,
    user: str | None,
    state_dir: Path | None,
    ca_file: Path | None,
    insecure: bool,
    log_file: Path | None,
    config: Path | None,
) -> None:
    """Get an ICE of its own for this machine with an enrolment key; waits for an approval.

    Exit status: 0 enrolled, 1 stopped before, 3 refused.
    """
    folder = StateFolder(state_dir or default_folder())
    with _refusals():
        place = _Place(_gateway_of(gateway, folder), folder.path, ca_file, insecure)
        if has_token(folder, place.gateway):
            say("this ICE already has a token")
            return
        options = _options(ca_file=ca_file, insecure=insecure, config=config, log_file=log_file)
        enroller = _enroller(place, enrolment_key_file, options, _print_event, name=name, user=user)
        log_to_stderr()
        outcome = eventloop.run(enroller.run, enroller.stop)
    match outcome:
        case ClosedByUs():
            fail(REFUSED, "stopped on request: this ICE is not enrolled yet")
        case Stopped():
            fail(MUST_ACT, outcome)


def _enroller(
    place: _Place,
    key_file: str,
    options: list[str],
    observe: Callable[[Event], None],
    *,
    name: str | None = None,
    user: str | None = None,
) -> Enroller:
    """Raises `NotAnEnrolmentKey`."""
    secret = _read_secret(key_file, EnrolmentSecret)
    if key_file != "-":
        options = [*options, "--enrolment-key-file", str(Path(key_file).absolute())]
        if platform.open_to_others(Path(key_file)):
            warn(
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
        observe=observe,
    )


main.add_command(accept)
main.add_command(show_status)
