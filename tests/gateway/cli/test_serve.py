"""`ice-gateway serve` as a process of its own: how it starts, what it refuses, how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import shlex
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization

from gateway.app import run_gateway
from gateway.cli import main
from gateway.cli.common import open_context
from gateway.cli.serve import ensure_local_admin, hang_up
from gateway.core.ice import IceType
from gateway.core.roles import Role
from gateway.core.times import utc_now
from gateway.runtime.logs import ICE_LINES_A_MINUTE
from gateway.runtime.setting_sources import load
from gateway.runtime.settings import BadSetting
from gateway.runtime.sockets import QUEUES
from gateway.store.sqlite.engine import open_sqlite
from gateway.store.sqlite.snapshot import mark_as_copy
from gateway.web.server import DOORS
from tests.support.authority import Authority
from tests.support.harness import settings_for
from tests.support.ice import PATIENCE, PROCESS_PATIENCE, Ice, Refused
from tests.support.served import Output, command, environment, serving


@pytest.fixture(scope="module")
def taken():
    """A port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory, taken):
    """A gateway on a new database, with settings from a file, whose metrics port is taken."""
    folder = tmp_path_factory.mktemp("served")
    config = folder / "gateway.toml"
    config.write_text(f'[metrics]\nlisten = "127.0.0.1:{taken}"\n')
    with serving(folder, "--config", str(config)) as started:
        yield started


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def secure(tmp_path_factory, authority):
    """A gateway that speaks TLS."""
    certificate, key = authority.certificate("127.0.0.1")
    env = {
        "ICE_GATEWAY_SERVER__TLS_CERTIFICATE": str(certificate),
        "ICE_GATEWAY_SERVER__TLS_KEY": str(key),
        "ICE_GATEWAY_METRICS__LISTEN": "",
    }
    with serving(tmp_path_factory.mktemp("secure"), **env) as started:
        yield started


# --- starting ----------------------------------------------------------------------------------


def test_it_says_what_it_serves(served):
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", served.url)
    assert served.line[3] == str(served.path)
    assert [served.get(path) for path in ("/healthz", "/readyz")] == [200, 200]


def test_it_listens_by_as_many_handles_as_the_documents_say(served):
    """The handles of one socket have one inode."""
    folder = Path(f"/proc/{served.process.pid}/fd")
    handles = Counter()
    for each in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            handles[str(each.readlink())] += 1
    sockets = [number for inode, number in handles.items() if inode.startswith("socket:")]
    assert [number for number in sockets if number > 1] == [DOORS] * QUEUES
    text = (Path(__file__).parents[3] / "docs/operation.md").read_text("utf-8")
    assert f"{DOORS * QUEUES} of them to listen on one address" in text
    assert f"Each socket is open {DOORS} times" in text


def test_without_users_it_names_the_command_for_the_first_admin(served):
    served.err.expect(rf"ice-gateway users add NAME --role admin --database .*{served.path}$")


def test_metrics_port_that_is_taken_is_a_warning(served, taken):
    line = json.loads(served.err.expect("^.*metrics not served.*$")[0])
    assert (line["level"], line["listen"]) == ("warning", ["127.0.0.1", taken])
    assert line["reason"] == "address already in use; see metrics.listen"


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Run `serve` in this process; it must be refused, and nothing of it must stay here."""
    for name in (
        "structlog.configure",
        "logging.basicConfig",
        "logging.captureWarnings",
        "gc.set_threshold",
        "sys.setswitchinterval",
        "resource.setrlimit",
    ):
        monkeypatch.setattr(name, lambda *_, **__: None)
    for name in os.environ:
        if name.startswith("ICE_GATEWAY_"):
            monkeypatch.delenv(name)

    def run(*args, status=os.EX_CONFIG, **env):
        options = ("--port", "0", "--database", f"sqlite:///{tmp_path}/ice.db")
        env = {"ICE_GATEWAY_METRICS__LISTEN": "", **env}
        result = CliRunner(catch_exceptions=False).invoke(main, ["serve", *options, *args], env=env)
        assert result.exit_code == status, f"serve {args} must be refused: {result.output}"
        assert re.fullmatch(r"ice-gateway: .+\n", result.stderr), (
            f"one line must say why, got {result.stderr!r}"
        )
        return result.stderr

    return run


def test_second_gateway_on_one_file_is_refused(served, refused):
    said = refused("--database", served.settings.database_url, status=1)
    assert said.startswith("ice-gateway: another gateway already serves ")
    assert served.get("/readyz") == 200, "the first must go on"


@pytest.mark.parametrize("count", ["1", "2", "many"])
def test_workers_are_gone_and_it_says_what_to_do_instead(refused, count):
    said = refused(ICE_GATEWAY_SERVER__WORKERS=count)
    assert "server.workers is gone" in said
    assert "use PostgreSQL and ice-gateway@.service" in said
    typed = CliRunner().invoke(main, ["serve", "--workers", count])
    assert typed.exit_code == 2
    assert said.removeprefix("ice-gateway: ") in typed.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])  # noqa: S104
def test_beyond_loopback_it_needs_a_public_url(refused, host):
    said = refused("--host", host)
    assert "server.public_url" in said
    assert "--public-url" in said


async def test_however_it_is_started_it_is_not_exposed_by_mistake(tmp_path):
    with pytest.raises(BadSetting, match=r"server\.public_url"):
        async with run_gateway(settings_for(tmp_path, server__host="0.0.0.0")):  # noqa: S104
            pass


@pytest.mark.parametrize(
    "exposed",
    [
        ("--host", "0.0.0.0", "--public-url", "http://localhost"),  # noqa: S104 - nothing is bound
        ("--host", "0.0.0.0", "--public-url", "http://gateway.example"),  # noqa: S104 - likewise
    ],
)
def test_plain_http_beyond_loopback_is_refused_unless_somebody_insists(refused, exposed):
    said = refused(*exposed)
    assert "plain http" in said
    assert "--insecure" in said
    # With it the gateway goes on to the next fault.
    assert "server.tls_key is missing" in refused(
        *exposed, "--insecure", ICE_GATEWAY_SERVER__TLS_CERTIFICATE="some.pem"
    )


async def test_plain_http_that_is_allowed_is_warned_of_at_each_start(tmp_path):
    public = {"server__public_url": ["http://gateway.example"]}
    for _ in range(2):
        with structlog.testing.capture_logs() as log:
            async with run_gateway(settings_for(tmp_path, **public)):
                pass
        [warning] = [line["event"] for line in log if line["log_level"] == "warning"]
        assert warning == (
            "server.public_url http://gateway.example is plain http: everybody on the way can read"
            " tokens and passwords"
        )


@pytest.mark.parametrize("url", ["example.org", "ftp://example.org", "https://", "https://a/?q"])
def test_public_url_must_be_one(refused, url):
    assert "server.public_url" in refused(ICE_GATEWAY_SERVER__PUBLIC_URL=url)


def test_port_that_is_taken_is_refused(refused, taken):
    said = refused("--port", str(taken), status=1)
    assert "server.port" in said
    assert str(taken) in said


def test_of_several_hosts_the_one_that_is_taken_is_named(refused, taken):
    said = refused("--port", str(taken), "--host", "::1", "--host", "127.0.0.1", status=1)
    assert f"cannot listen on 127.0.0.1:{taken}: Address already in use" in said


async def test_it_listens_on_several_hosts_and_each_is_a_place_that_an_ice_may_sign(tmp_path):
    hosts = ("--host", "127.0.0.1", "--host", "::1")
    with serving(tmp_path, *hosts, ICE_GATEWAY_METRICS__LISTEN="") as served:
        ice = await served.provision("lab-1")
        for url in (served.url, served.url.replace("127.0.0.1", "[::1]")):
            connection = await Ice(url, ice.token, ice.key).connect()
            assert connection.welcome["ice_name"] == "lab-1"
            await connection.close()
        assert await asyncio.to_thread(served.stop) == 0


SSO = {
    "ICE_GATEWAY_SSO__ISSUER": "https://id.example.org",
    "ICE_GATEWAY_SSO__CLIENT_ID": "ice",
    "ICE_GATEWAY_SSO__ROLES": "lab=admin",
}


def test_where_single_sign_on_is_required_a_local_admin_must_have_a_password(
    refused, tmp_path, taken
):
    required = SSO | {"ICE_GATEWAY_SSO__REQUIRED": "true"}
    database = f"sqlite:///{tmp_path}/ice.db"
    add = f"run: ice-gateway users add NAME --role admin --database {database}\n"
    assert refused(**required).endswith(add), "a new database"
    runner = CliRunner(catch_exceptions=False)
    new = ["users", "add", "old root", "--role", "admin", "--database", database]
    runner.invoke(main, [*new, "--no-password"])
    assert refused(**required).endswith(add), "an admin without a password"
    password = ["users", "set-password", "old root", "--password-stdin", "--database", database]
    runner.invoke(main, password, input="a long enough password")
    with sqlite3.connect(tmp_path / "ice.db") as connection:
        connection.execute("UPDATE users SET origin = NULL")
    said = refused(**required)
    mark = f"ice-gateway users set-login 'old root' local --database {database}"
    assert said == (
        f"ice-gateway: sso.required is set, but no enabled local admin has a password; run: {mark}\n"
    )
    assert runner.invoke(main, shlex.split(mark)[1:]).exit_code == 0
    # Now it comes as far as its port.
    refused("--port", str(taken), status=1, **required)


def test_without_an_admin_who_logs_in_by_password_it_warns(tmp_path, capsys):
    settings = settings_for(tmp_path, sso__issuer="https://id.example.org")
    database = settings.database_url
    runner = CliRunner(catch_exceptions=False)
    runner.invoke(
        main, ["users", "add", "root", "--role", "admin", "--no-password", "--database", database]
    )
    ensure_local_admin(settings, has_users=True)
    assert capsys.readouterr().err == (
        "ice-gateway: no admin could log in by password while the issuer cannot be reached; provide one with:"
        f" ice-gateway users add NAME --role admin --database {database}\n"
    )
    password = ["users", "set-password", "root", "--password-stdin", "--database", database]
    runner.invoke(main, password, input="a long enough password")
    ensure_local_admin(settings, has_users=True)
    ensure_local_admin(settings_for(tmp_path), has_users=True)
    assert capsys.readouterr().err == ""


def test_missing_key_file_is_refused_once_there_are_ices(refused, tmp_path):
    settings = load(None, {}, {"database.url": f"sqlite:///{tmp_path}/ice.db"})

    async def provision():
        async with open_context(settings) as opened:
            await opened.services.provisioning.provision(opened.actor, "lab-1", IceType.CI_CD, None)

    asyncio.run(provision())
    settings.key_file.unlink()
    said = refused()
    assert str(settings.key_file) in said
    assert "backup" in said
    assert not settings.key_file.exists(), "a lost key file must never be remade silently"


def test_damaged_database_is_refused(refused, tmp_path):
    path = tmp_path / "ice.db"

    async def make():
        async with open_sqlite(path):
            pass

    asyncio.run(make())
    content = path.read_bytes()
    path.write_bytes(content[:4096] + bytes(len(content) - 4096))
    said = refused(status=1)
    assert f"the database {path} cannot be" in said
    assert "restore a backup" in said


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["certificate"], "server.tls_key is missing"),
        (["key"], "server.tls_certificate is missing"),
        (["certificate", "key"], "server.tls_certificate"),
    ],
)
def test_tls_needs_both_files(refused, tmp_path, given, named):
    env = {f"ICE_GATEWAY_SERVER__TLS_{name.upper()}": f"{tmp_path}/{name}" for name in given}
    assert named in refused(**env)


def test_key_with_a_passphrase_is_refused_and_nobody_is_asked(refused, authority):
    certificate, file = authority.certificate("127.0.0.1", name="encrypted")
    key = serialization.load_pem_private_key(file.read_bytes(), None)
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    said = refused(
        ICE_GATEWAY_SERVER__TLS_CERTIFICATE=str(certificate),
        ICE_GATEWAY_SERVER__TLS_KEY=str(file),
    )
    assert f"server.tls_key {file} has a passphrase" in said


# --- running -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "code"), [("deregister", 4101), ("disconnect", 4201)])
async def test_command_drops_the_live_session_within_a_second(served, action, code):
    ice = await served.provision(f"lab-{action}")
    connection = await ice.connect()
    loop = asyncio.get_running_loop()

    async def dropped():
        await connection.expect_dropped(code)
        return loop.time()

    drop = asyncio.create_task(dropped())
    assert await served.run("ices", action, f"LAB-{action}") == "", "it prints nothing"
    done = loop.time()
    late = await drop - done
    assert late < 1, f"the {action} by command dropped the session {late:.2f} s after it was done"
    await connection.close()
    if action == "deregister":
        assert (await ice.refused()).code == "deregistered"
    else:
        again = await ice.connect()
        assert again.welcome["generation"] == 1
        await again.close()


async def test_command_shows_the_live_connection(served):
    ice = await served.provision("lab-shown")
    connection = await ice.connect()
    show = ("ices", "show", "lab-shown", "--json", "--database", served.settings.database_url)

    def shown():
        return json.loads(CliRunner(catch_exceptions=False).invoke(main, show).stdout)

    async with asyncio.timeout(PATIENCE):  # presence is written a moment later
        while (told := await asyncio.to_thread(shown))["connection"] is None:
            pass
    assert told["connection"]["session"] == connection.welcome["session"]
    connection.hello(version="2.4.1")
    listing = ("ices", "list", "--q", "lab-shown", *show[-2:])

    def listed(status):
        found = CliRunner(catch_exceptions=False).invoke(main, listing).stdout.splitlines()
        assert all(len(line) <= 80 for line in found)
        return re.fullmatch(rf"lab-shown +ci-cd +- +registered +{status} +2\.4\.1", found[1])

    async with asyncio.timeout(PATIENCE):
        while not await asyncio.to_thread(listed, "connected"):
            pass
        await connection.close()
        while not await asyncio.to_thread(listed, r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"):
            pass


async def test_token_by_command_registers(served):
    token = (await served.run("ices", "provision", "lab-new", "--type", "ci-cd")).strip()
    served.secrets.append(token)
    connection = await Ice(served.url, token).connect()
    assert connection.welcome["ice_name"] == "lab-new"
    await connection.close()


@pytest.mark.long
async def test_an_ice_that_comes_again_and_again_fills_no_log(served):
    ice = await served.provision("lab-again")
    await served.run("ices", "reprovision", "lab-again")
    for _ in range(3 * ICE_LINES_A_MINUTE):
        assert (await ice.refused()).code == "token-replaced"
    other = await served.provision("lab-other")
    await served.run("ices", "reprovision", "lab-other")
    await other.refused()
    await asyncio.to_thread(served.err.expect, '"unsaid":')
    said = [line for line in served.err.lines if '"ice":"lab-again"' in line]
    assert 1 <= len(said) <= 2 * ICE_LINES_A_MINUTE, "a minute may have passed in between"


async def test_disabled_user_is_refused_at_once(served):
    async with open_context(served.settings) as opened:
        await opened.services.accounts.add_user(opened.actor, "eve", Role.ADMIN, None)
        made = await opened.services.accounts.create_token(opened.actor, "eve", "test", 0)
    served.secrets.append(made.secret.reveal())
    request = urllib.request.Request(  # noqa: S310
        f"{served.url}/admin/api/v1/ices",
        headers={"Authorization": f"Bearer {made.secret.reveal()}"},
    )

    def status():
        try:
            with urllib.request.urlopen(request) as answer:  # noqa: S310
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert await asyncio.to_thread(status) == 200
    async with open_context(served.settings) as opened:
        await opened.services.accounts.disable(opened.actor, "eve")
    assert await asyncio.to_thread(status) == 401


async def test_a_restored_table_admits_nobody_until_it_is_confirmed(tmp_path):
    settings = settings_for(tmp_path)
    async with open_context(settings) as opened:
        issued = await opened.services.provisioning.provision(
            opened.actor, "lab-1", IceType.CI_CD, None
        )
    mark_as_copy(settings.database_path, utc_now())
    with serving(tmp_path, ICE_GATEWAY_METRICS__LISTEN="") as served:
        served.err.expect("no ICE is admitted until `ice-gateway restore --confirm`")
        ice = Ice(served.url, issued.token.reveal())
        assert (await ice.refused()).code == "store-unavailable"
        confirm = ("restore", "--confirm", "--yes", "--database", served.settings.database_url)
        result = await asyncio.to_thread(CliRunner(catch_exceptions=False).invoke, main, confirm)
        assert result.exit_code == 0, result.output
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    connection = await ice.connect()
                    break
                except Refused as refused:
                    assert refused.code == "store-unavailable"  # noqa: PT017 - until it follows
        await connection.close()


# --- streams that nobody takes anything from -----------------------------------------------------


class Deaf:
    """A gateway whose URL nobody could read from its stdout."""

    def __init__(self, folder, redirection, **streams):
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as other:
            port, metrics = one.getsockname()[1], other.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        script = f'exec "$@" {redirection}'
        serve = ("serve", "--port", str(port), "--database", f"sqlite:///{folder}/ice.db")
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", script, "sh", *command(*serve)],
            env=environment(ICE_GATEWAY_METRICS__LISTEN=f"127.0.0.1:{metrics}"),
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **streams},
        )

    def ask(self, url):
        """Its answer, once it listens; it must not have ended."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}"
            with (
                contextlib.suppress(urllib.error.URLError),
                urllib.request.urlopen(url, timeout=PATIENCE) as answer,  # noqa: S310
            ):
                return answer.read().decode()
            time.sleep(0.02)
        raise AssertionError(f"{url} was not answered")

    def stop(self):
        self.process.terminate()
        return self.process.wait(PROCESS_PATIENCE)


@contextlib.contextmanager
def deaf(folder, redirection, **streams):
    gateway = Deaf(folder, redirection, **streams)
    try:
        yield gateway
    finally:
        gateway.process.kill()
        gateway.process.wait(PROCESS_PATIENCE)


@pytest.mark.parametrize(
    "redirection",
    [
        ">/dev/full 2>&1",
        "<&- >&- 2>&-",
        *(
            pytest.param(one, marks=pytest.mark.long)
            for one in (">/dev/full", "2>/dev/full", ">&-", "2>&-", "<&-")
        ),
    ],
)
def test_it_serves_whatever_becomes_of_what_it_says(tmp_path, redirection):
    with deaf(tmp_path, redirection, stderr=subprocess.DEVNULL) as gateway:
        gateway.ask(f"{gateway.url}/readyz")
        for number in range(3):
            link = Path(f"/proc/{gateway.process.pid}/fd/{number}").readlink()
            assert str(link) in ("/dev/null", "/dev/full"), "neither a socket nor the database"
        assert gateway.stop() == 0
    assert not list(tmp_path.glob("*.db-*")), "the database was closed as it should be"


def test_lines_that_cannot_be_written_are_counted(tmp_path):
    with deaf(tmp_path, "2>/dev/full") as gateway:
        gateway.ask(f"{gateway.url}/readyz")  # and one line at least: there is no user yet
        found = re.search(
            r"^ice_gateway_log_lines_lost_total (.+)$",
            gateway.ask(gateway.metrics),
            re.MULTILINE,
        )
        assert float(found[1]) > 0


@pytest.mark.long
def test_a_reader_that_hangs_stops_neither_its_start_nor_its_end(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writing, bytes(4096)):
            pass  # until nothing more goes in
    os.set_blocking(writing, True)
    with deaf(tmp_path, "2>&1", stdout=writing) as gateway:
        os.close(writing)
        gateway.ask(f"{gateway.url}/readyz")
        for _ in range(20):
            refused = socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])))
            with refused:
                refused.sendall(b"no request\r\n\r\n")
                assert refused.recv(100), "each is a line of the log"
        gateway.ask(f"{gateway.url}/readyz")
        assert gateway.stop() == 0
    os.close(reading)


def test_systemd_is_told_of_start_reload_life_and_stop(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(PATIENCE)
        systemd.bind(str(tmp_path / "notify"))
        asked = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "200000"}

        def heard(wanted):
            """Each message until the wanted one, without signs of life that come before."""
            told = []
            while not told or not told[-1].startswith(wanted):
                message = systemd.recv(4096).decode()
                if message != "WATCHDOG=1" or wanted == message:
                    told.append(message)
            return told

        with serving(tmp_path, ICE_GATEWAY_METRICS__LISTEN="", **asked) as served:
            assert heard("READY") == [f"STATUS=serves {served.url} on {served.path}", "READY=1"]
            assert heard("WATCHDOG=1") == ["WATCHDOG=1"]
            served.process.send_signal(signal.SIGHUP)
            assert len(heard("RELOADING")) == 1
            assert heard("READY") == ["READY=1"]
            assert served.stop() == 0
            assert heard("STOPPING") == ["STOPPING=1"]


# --- SIGHUP ------------------------------------------------------------------------------------


async def test_it_renews_its_certificate_and_keeps_its_connections(secure, authority):
    ice = await secure.provision("lab-renewed", authority.trust())

    async def shown():
        """The certificate that a new handshake is shown."""
        _, writer = await ice.dial()
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        await writer.wait_closed()
        return certificate

    async def hang_up(says):
        secure.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(secure.err.expect, says)

    connection = await ice.connect()
    before = await shown()
    another, _ = authority.certificate("127.0.0.1", name="another")
    file, _ = authority.certificate("127.0.0.1")  # in the files of the one in use
    renewed = ssl.PEM_cert_to_DER_cert(file.read_text())
    assert await shown() == before, "nobody has said yet that it is there whole"
    await hang_up("the certificate is renewed")
    assert await shown() == renewed

    for bad, because in {
        another.read_bytes(): "KEY_VALUES_MISMATCH",
        b"no certificate": "PEM",
        None: "No such file",
    }.items():
        file.write_bytes(bad) if bad else file.unlink()
        await hang_up(f"{because}.*the certificate is not renewed, the old one stays")
        assert await shown() == renewed, f"a bad pair must not be taken: {because}"

    await connection.round_trip()
    await connection.close()


async def test_sighup_without_tls_changes_nothing(served):
    connection = await (await served.provision("lab-untouched")).connect()
    served.process.send_signal(signal.SIGHUP)
    await asyncio.to_thread(served.err.expect, "nothing to read again")
    await connection.round_trip()
    await connection.close()


def hears(process, number):
    """Wait until the process handles a signal: from here on none may be lost."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if int(re.search(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)[1], 16) >> (number - 1) & 1:
            return
        assert process.poll() is None, "it has ended"
    raise AssertionError(f"signal {number} is never handled")


@pytest.fixture
def starting(tmp_path):
    """Start a gateway, and return at once."""
    with contextlib.ExitStack() as stack:

        def start(*before):
            options = ("--port", "0", "--database", f"sqlite:///{tmp_path}/ice.db")
            process = subprocess.Popen(
                [*before, *command("serve", *options)],
                env=environment(ICE_GATEWAY_METRICS__LISTEN=""),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate, timeout=PROCESS_PATIENCE)
            stack.callback(process.kill)
            return process

        yield start


def test_a_stop_is_heard_from_the_first_moment_on(starting, tmp_path):
    process = starting()
    hears(process, signal.SIGTERM)
    for _ in range(20):
        process.terminate()
    out, err = process.communicate(timeout=PROCESS_PATIENCE)
    assert (process.returncode, err) == (0, ""), "it did what it was told"
    assert "serves" not in out
    with serving(tmp_path, ICE_GATEWAY_METRICS__LISTEN="") as served:
        assert served.get("/readyz") == 200, "nothing is left that would keep the next one out"
        assert served.stop() == 0


def test_a_renewal_while_it_starts_neither_ends_it_nor_is_lost(starting):
    process = starting()
    hears(process, signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    out, err = Output(process.stdout), Output(process.stderr)
    out.expect("^ice-gateway .* serves ")
    err.expect("nothing to read again")
    for _ in range(50):
        process.send_signal(signal.SIGHUP)
    for _ in range(50):
        process.terminate()
    assert process.wait(PROCESS_PATIENCE) == 0
    assert out.end().endswith("ice-gateway stopped\n")


@pytest.mark.long
def test_as_the_first_process_of_a_container_it_stops_likewise(starting):
    contained = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
    possible = subprocess.run([*contained, "true"], capture_output=True, text=True, check=False)
    if possible.returncode:
        pytest.skip(f"this system makes no namespaces: {possible.stderr}")
    for ready in (False, True):
        outer = starting(*contained)
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        until = time.monotonic() + PATIENCE
        while not (found := children.read_text().split()):
            assert time.monotonic() < until, "unshare has started nothing"
        gateway = types.SimpleNamespace(pid=int(found[0]), poll=outer.poll)
        hears(gateway, signal.SIGTERM)
        if ready:
            Output(outer.stdout).expect("^ice-gateway .* serves ")
        os.kill(gateway.pid, signal.SIGTERM)
        assert outer.wait(PROCESS_PATIENCE) == 0


def test_a_stop_while_it_asks_for_the_first_admin_ends_it(tmp_path):
    ours, terminal = pty.openpty()
    with subprocess.Popen(
        command("serve", "--port", "0", "--database", f"sqlite:///{tmp_path}/ice.db"),
        env=environment(ICE_GATEWAY_METRICS__LISTEN=""),
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        out = Output(process.stdout)
        out.expect("name the first admin")
        process.terminate()
        assert process.wait(PROCESS_PATIENCE) == 0
    os.close(ours)
    os.close(terminal)


@pytest.mark.parametrize(
    ("on_terminal", "still_there", "happens"),
    [(False, False, "reload"), (True, True, "reload"), (True, False, "SIGHUP")],
)
async def test_only_a_closed_terminal_ends_it(monkeypatch, on_terminal, still_there, happens):
    done = []
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: still_there))

    def killed(number):
        assert signal.getsignal(number) is signal.SIG_DFL
        done.append(signal.Signals(number).name)
        raise SystemExit

    monkeypatch.setattr(signal, "raise_signal", killed)
    with contextlib.suppress(SystemExit):
        hang_up(lambda: done.append("reload"), on_terminal)
    assert done == [happens]


# --- stopping ----------------------------------------------------------------------------------


async def test_it_stops_by_ctrl_c_and_its_log_told_no_secret(served):
    ice = await served.provision("lab-last")
    connection = await ice.connect()
    assert (await Ice(served.url, ice.token).refused()).code == "key-mismatch"
    assert (await Ice(served.url, "no.such.token").refused()).code == "token-invalid"
    stopped = asyncio.create_task(asyncio.to_thread(served.stop, signal.SIGINT))
    await connection.expect_dropped(1012)
    await connection.close()
    assert await stopped == 0
    out, log = served.out.end(), served.err.end()
    assert out.endswith("ice-gateway stopped\n")
    events = [json.loads(line)["event"] for line in log.splitlines() if line.startswith("{")]
    assert {"admitted", "refused", "closed"} <= set(events), "the log must tell what happened"
    for secret in served.secrets:
        assert secret not in out + log, "a token was logged"
        assert secret.rsplit(".", 1)[-1] not in log, "a part of a token was logged"
    assert "DPoP" not in log
    assert "Traceback" not in log


async def test_it_speaks_tls_and_on_sigterm_tells_each_ice_when_to_come_back(secure, authority):
    assert secure.url.startswith("https://127.0.0.1:")
    trust = authority.trust()
    assert await asyncio.to_thread(secure.get, "/readyz", trust) == 200
    ices = [await secure.provision(f"lab-{number}", trust) for number in range(4)]
    connections = [await ice.connect() for ice in ices]
    began = time.monotonic()
    stopped = asyncio.create_task(asyncio.to_thread(secure.stop))
    reasons = [await connection.expect_dropped(1012) for connection in connections]
    for connection in connections:
        await connection.close()
    assert await stopped == 0, "a gateway that was told to stop has not failed"
    assert time.monotonic() - began < 10
    assert secure.out.end().endswith("ice-gateway stopped\n")
    told = [json.loads(reason) for reason in reasons]
    assert all(list(reason) == ["retry_after"] for reason in told), told
    waits = [reason["retry_after"] for reason in told]
    assert min(waits) >= 1, f"nobody may come back before a second has passed: {waits}"
    assert len(set(waits)) == len(waits), f"each ICE must have a time of its own: {waits}"


def test_it_says_what_it_runs_with(served):
    served.out.expect(r"^it runs with Python 3\S+, .+ file handles, for 100,000 ICEs at the most$")
