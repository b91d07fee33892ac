"""`ice-gateway serve` and `ice-gateway demo`."""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from gateway import __version__
from gateway.cli.common import FAULTS, desk, fail, refuse, settings_from, unwrap
from gateway.cli.users import ask_password
from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.runtime import eventloop
from gateway.runtime.settings import Settings
from gateway.runtime.signals import Callback, signals
from gateway.runtime.sockets import open_listeners
from gateway.runtime.standard_streams import coupled, decouple


@click.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="Settings file.")
@click.option("--database", metavar="URL", help="Such as sqlite:///ice-gateway.db.")
@click.option("--host", multiple=True, help="Address to listen on; may be repeated.")
@click.option("--port", type=int, help="Port to listen on; 0 for any.")
@click.option(
    "--public-url", multiple=True, metavar="URL", help="Where ICEs reach it; may be repeated."
)
@click.option("--insecure", is_flag=True, help="Allow plain http from other machines.")
@click.option("--workers", hidden=True)  # gone, and refused with what to do instead
def serve(
    *,
    config: Path | None,
    database: str | None,
    host: tuple[str, ...],
    port: int | None,
    public_url: tuple[str, ...],
    insecure: bool,
    workers: str | None,
) -> None:
    """Run the gateway until SIGTERM or Ctrl-C; on SIGHUP it reads its certificate again."""
    # False where `gateway.__main__` has done so, in a process of its own.
    called = signals.install()
    try:
        settings = settings_from(
            config,
            {
                "database.url": database,
                "server.host": list(host) or None,
                "server.port": port,
                "server.public_url": list(public_url) or None,
                "server.insecure": insecure or None,
                "server.workers": workers,
            },
        )
        _run(settings)
    finally:
        if called:
            signals.restore()
        else:
            signals.ignore()


def _run(settings: Settings) -> None:
    from gateway.runtime.logs import configure

    decouple()
    configure(settings.log_format, settings.log_level)
    try:
        settings.check_exposure()
        anybody = _first_admin(settings)
        if not signals.stopping:
            signals.install_interrupt()
            eventloop.run(_heard(_serve(settings, anybody=anybody)))
    except FAULTS as error:
        fail(error)


async def _heard(work: Coroutine[Any, Any, None]) -> None:
    """Run `work`; a signal that comes later finds no loop to wake."""
    try:
        await work
    finally:
        signals.on_stop(None)
        signals.on_hang_up(None)


async def _serve(settings: Settings, *, anybody: bool) -> None:
    from gateway.app import LINGER, run_gateway
    from gateway.runtime.tls import reload_certificate

    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine that runs has one
    signals.on_stop(_soon(task.cancel))  # while it starts
    try:
        async with run_gateway(settings, linger=LINGER) as gateway:
            stop = _stopped()
            _on_hang_up(functools.partial(reload_certificate, gateway.tls))
            _tell(settings, gateway.url, gateway.engine.name, anybody=anybody)
            if gateway.node.restore_hold.reason is not None:
                click.echo(f"ice-gateway: {gateway.node.restore_hold.reason}", err=True)
            eventloop.freeze_heap()
            gateway.failed.add_done_callback(lambda _: stop.set())
            await stop.wait()
            if gateway.failed.done():
                refuse("a part of the gateway died; its log says which")
    except asyncio.CancelledError:
        if not signals.stopping:
            raise
        task.uncancel()
    click.echo("ice-gateway stopped")


def _soon(act: Callable[[], object]) -> Callback:
    """For a signal handler, which runs in between whatever the loop does: have the loop do it."""
    loop = asyncio.get_running_loop()

    def later() -> None:
        loop.call_soon_threadsafe(act)

    return later


def _stopped() -> asyncio.Event:
    """Set once somebody wants the gateway to end."""
    stop = asyncio.Event()
    signals.on_stop(_soon(stop.set))
    return stop


def _on_hang_up(reload: Callable[[], None]) -> None:
    signals.on_hang_up(_soon(functools.partial(_hang_up, reload, sys.stdin.isatty())))


def _hang_up(reload: Callable[[], None], on_terminal: bool) -> None:  # noqa: FBT001 - a callback's argument
    """SIGHUP: renew the certificate; where the terminal has gone, end as any program does."""
    if on_terminal and not sys.stdin.isatty():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGHUP)
    reload()


def _tell(settings: Settings, url: str, database: str, *, anybody: bool) -> None:
    """Say what runs, with what, and what is still to be done."""
    click.echo(f"ice-gateway {__version__} serves {url} on {database}")
    click.echo(
        f"it runs with {eventloop.describe()}, for {settings.ice_max_connections:,} ICEs at the most"
    )
    few = eventloop.too_few_handles(settings.ice_max_connections)
    if few is not None:
        click.echo(f"ice-gateway: {few}", err=True)
    for public in settings.server_public_url or (url,):
        click.echo(f"ICEs use --gateway {public}; the admin page is {public}/admin/")
    if not anybody:
        click.echo(
            "there is no user yet; add the first admin with:"
            f" ice-gateway users add NAME --role admin --database {settings.database_shown}",
            err=True,
        )


def _first_admin(settings: Settings) -> bool:
    """Where there is no user yet, ask for the first admin on a terminal; False where there is still none."""
    if asyncio.run(_any_user(settings)):
        return True
    if not sys.stdin.isatty():
        return False
    # Outside of any loop, which would take Ctrl-C for itself; and not before it can start.
    _check_address(settings)
    signals.on_stop(sys.exit)  # at once: a question waits for as long as nobody answers
    with coupled():
        click.echo("There is no user yet: name the first admin.")
        name = click.prompt("Name", default="admin")
        password = ask_password(from_stdin=False)
    signals.on_stop(None)
    asyncio.run(_add_admin(settings, name, password))
    return True


async def _any_user(settings: Settings) -> bool:
    async with desk(settings) as opened:
        return await opened.services.accounts.any()


async def _add_admin(settings: Settings, name: str, password: Secret) -> None:
    async with desk(settings) as opened:
        unwrap(await opened.services.accounts.add_user(opened.actor, name, Role.ADMIN, password))


def _check_address(settings: Settings) -> None:
    try:
        for one in open_listeners(settings.server_host, settings.server_port):
            one.close()
    except OSError as error:
        raise eventloop.listen_error(settings, error) from error


@click.command()
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="Settings file.")
@click.option("--database", metavar="URL", help="Where to leave the database; else it is removed.")
def demo(config: Path | None, database: str | None) -> None:
    """Tell the whole story of an ICE on one screen, with a real gateway and real clients."""
    from gateway.cli.demo_story import tell

    sys.exit(tell(config, database))
