"""`ice-gateway serve` and `ice-gateway demo`."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from client.systemd import ServiceManager
from gateway import __version__
from gateway.cli.common import FATAL_ERRORS, exit_on_error, open_context, run, settings_from, unwrap
from gateway.cli.output import print_notice, refuse
from gateway.cli.parameters import FILE
from gateway.cli.users import ask_password
from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.core.times import utc_now
from gateway.runtime import eventloop
from gateway.runtime.settings import BadSetting, Settings
from gateway.runtime.signals import Callback, signals
from gateway.runtime.sockets import open_listeners
from gateway.runtime.standard_streams import coupled, decouple
from gateway.services.local_admins import missing_local_admin


@click.command()
@click.option("--config", type=FILE, help="Settings file.")
@click.option("--database", metavar="URL", help="Such as sqlite:///ice-gateway.db.")
@click.option("--host", multiple=True, help="Address to listen on; may be repeated.")
@click.option("--port", type=int, help="Port to listen on; 0 for any.")
@click.option(
    "--public-url",
    multiple=True,
    metavar="URL",
    help="The gateway's URL for ICEs; may be repeated.",
)
@click.option("--insecure", is_flag=True, help="Allow plain http from other machines.")
@click.option("--workers", hidden=True)  # removed; the settings refuse it and name the alternative
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
    """Run the gateway until SIGTERM or Ctrl-C; reload its certificate on SIGHUP."""
    installed = signals.install()  # False if `gateway.__main__` has done this
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
        if installed:
            signals.restore()
        else:
            signals.ignore()


def _run(settings: Settings) -> None:
    from gateway.runtime.logs import configure

    decouple()
    configure(settings.log_format, settings.log_level)
    try:
        settings.check_exposure()
        has_users = _ensure_user(settings)
        ensure_local_admin(settings, has_users=has_users)
        if not signals.stopping:
            signals.install_interrupt()
            manager = ServiceManager()
            work = _serve(settings, manager, has_users=has_users)
            eventloop.run(_with_signals(work, manager))
    except FATAL_ERRORS as error:
        exit_on_error(error)


async def _with_signals(work: Coroutine[Any, Any, None], manager: ServiceManager) -> None:
    """Run `work`, watched by systemd, then remove its signal callbacks, which would wake a closed loop."""
    try:
        with manager.watched(asyncio.get_running_loop()):
            await work
    finally:
        signals.on_stop(None)
        signals.on_hang_up(None)


async def _serve(settings: Settings, manager: ServiceManager, *, has_users: bool) -> None:
    from gateway.app import LINGER, run_gateway
    from gateway.runtime.tls import reload_certificate

    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine that runs has one
    signals.on_stop(_in_loop(task.cancel))  # during the start
    try:
        async with run_gateway(settings, linger=LINGER) as gateway:
            stop = asyncio.Event()
            signals.on_stop(_in_loop(stop.set))
            on_terminal = sys.stdin.isatty()

            def reload() -> None:
                manager.reloading()
                reload_certificate(gateway.tls)
                manager.ready()

            signals.on_hang_up(_in_loop(lambda: hang_up(reload, on_terminal)))
            _print_start(settings, gateway.url, gateway.engine.name, has_users=has_users)
            if gateway.node.restore_hold.reason is not None:
                click.echo(f"ice-gateway: {gateway.node.restore_hold.reason}", err=True)
            eventloop.freeze_heap()
            gateway.failed.add_done_callback(lambda _: stop.set())
            manager.status(f"serves {gateway.url} on {gateway.engine.name}")
            manager.ready()
            await stop.wait()
            manager.stopping()
            if gateway.failed.done():
                refuse("a part of the gateway failed; its log says which")
    except asyncio.CancelledError:
        if not signals.stopping:
            raise
        task.uncancel()
    click.echo("ice-gateway stopped")


def _in_loop(act: Callable[[], object]) -> Callback:
    """A signal callback that has the running loop call `act`."""
    loop = asyncio.get_running_loop()

    def schedule() -> None:
        loop.call_soon_threadsafe(act)

    return schedule


def hang_up(reload: Callable[[], None], on_terminal: bool) -> None:  # noqa: FBT001 - a callback's argument
    """Handle SIGHUP: reload the certificate, or end if the terminal was closed."""
    if on_terminal and not sys.stdin.isatty():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGHUP)
    reload()


def _print_start(settings: Settings, url: str, database: str, *, has_users: bool) -> None:
    """Print what runs and what the operator still has to do."""
    click.echo(f"ice-gateway {__version__} serves {url} on {database}")
    click.echo(
        f"it runs with {eventloop.describe()}, for {settings.ice_max_connections:,} ICEs at the most"
    )
    warning = eventloop.too_few_handles(settings.ice_max_connections)
    if warning is not None:
        click.echo(f"ice-gateway: {warning}", err=True)
    for public in settings.server_public_url or (url,):
        click.echo(f"ICEs use --gateway {public}; the admin page is {public}/admin/")
    if not has_users:
        click.echo(
            "there is no user yet; add the first admin with:"
            f" ice-gateway users add NAME --role admin --database {settings.database_shown}",
            err=True,
        )


def _ensure_user(settings: Settings) -> bool:
    """Whether there is a user; if not, ask for the first admin on a terminal."""
    if asyncio.run(_any_user(settings)):
        return True
    if not sys.stdin.isatty():
        return False
    _check_address(settings)  # no questions if the gateway cannot start
    signals.on_stop(sys.exit)  # no loop runs, so a signal ends the question at once
    with coupled():
        click.echo("There is no user yet: name the first admin.")
        name = click.prompt("Name", default="admin")
        password = ask_password()
    signals.on_stop(None)
    run(_add_admin(settings, name, password))
    return True


async def _any_user(settings: Settings) -> bool:
    async with open_context(settings) as context:
        return await context.services.accounts.any()


def ensure_local_admin(settings: Settings, *, has_users: bool) -> None:
    """Refuse to start, or warn, if no admin could log in while the issuer cannot be reached."""
    if not settings.sso_issuer or signals.stopping:
        return
    command = asyncio.run(_missing_local_admin(settings))
    if command is None:
        return
    command += f" --database {settings.database_shown}"
    if settings.sso_required:
        raise BadSetting(
            f"sso.required is set, but no enabled local admin has a password; run: {command}"
        )
    if has_users:  # otherwise the first admin is asked for in any case
        print_notice(
            "no admin could log in by password while the issuer cannot be reached; provide one with:"
            f" {command}"
        )


async def _missing_local_admin(settings: Settings) -> str | None:
    async with open_context(settings) as context:
        return await missing_local_admin(context.engine.fetch, settings.login_rules, utc_now())


async def _add_admin(settings: Settings, name: str, password: Secret) -> None:
    async with open_context(settings) as context:
        unwrap(await context.services.accounts.add_user(context.actor, name, Role.ADMIN, password))


def _check_address(settings: Settings) -> None:
    try:
        for listener in open_listeners(settings.server_host, settings.server_port):
            listener.close()
    except OSError as error:
        raise eventloop.listen_error(settings, error) from error


@click.command()
@click.option("--config", type=FILE, help="Settings file.")
@click.option("--database", metavar="URL", help="Keep the database here; by default it is removed.")
def demo(config: Path | None, database: str | None) -> None:
    """Show the life of an ICE on one screen, with a real gateway and real clients."""
    from gateway.cli.demo_story import run_demo

    settings_from(config, {"database.url": database})  # refuses them before anything starts
    sys.exit(run_demo(config, database))
