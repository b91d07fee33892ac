"""Bad days of a real gateway process: refused with a true sentence, sessions stay, over without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import resource
import signal
import sqlite3
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.exposition import generate_latest

from gateway.cli.common import open_context
from gateway.core.audit_event import Event
from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.runtime.fd_limits import RESERVE
from gateway.services.login_failures import LoginFailures
from gateway.services.logins import LoginService
from gateway.services.passwords import Passwords
from gateway.store.logins import Login
from gateway.store.logins import add as add_login
from tests.contract.domain import login_rules
from tests.support.clock import StandingClock
from tests.support.harness import ADMIN, Api, expect_refused, harness
from tests.support.ice import PATIENCE, PROCESS_PATIENCE, Ice, Refused, until
from tests.support.served import command, environment, serving

UNLIMITED = resource.RLIM_INFINITY


def start(folder):
    """A gateway as a process of its own."""
    return serving(folder, ICE_GATEWAY_METRICS__LISTEN="")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with start(tmp_path_factory.mktemp("served")) as started:
        yield started


async def make_token(served):
    """An API token of an admin; made by command, as everything that must not need the gateway."""
    async with open_context(served.settings) as opened:
        await opened.services.accounts.add_user(opened.actor, "root", Role.ADMIN, None)
        made = await opened.services.accounts.create_token(opened.actor, "root", "test", 0)
        return made.secret.reveal()


@pytest.fixture(scope="module")
def token(served):
    return asyncio.run(make_token(served))


class Day:
    """A day on which something happens to a gateway with one connected ICE and one that comes anew."""

    def __init__(self, served, session, api):
        self.served = served
        self.path = served.path
        self.pid = served.process.pid
        self._session = session
        self.api = api
        self._open = contextlib.AsyncExitStack()

    async def close(self):
        await self._open.aclose()

    async def connect(self, ice):
        connection = await ice.connect()
        self._open.push_async_callback(connection.close)
        return connection

    async def fill(self, ices):
        """Connect one after the other until the gateway has no room; their connections."""
        connections = []
        for ice in ices:
            try:
                connections.append(await self.connect(ice))
            except Refused as refused:
                if refused.code != "overloaded":
                    raise
                return connections
        raise AssertionError(f"all of {len(ices)} ICEs were admitted")

    async def dial(self):
        """A connection that says nothing."""
        _, writer = await self.here.dial()
        self._open.callback(writer.close)
        return writer

    async def begin(self, name):
        self.names = [f"{name}-{number}" for number in (1, 2)]
        self.here, self.new = [await self.provision(name) for name in self.names]
        self.connection = await self.connect(self.here)
        await self.is_ready()

    async def provision(self, name):
        answer = await self.api.post("/ices", {"ice_name": name, "ice_type": "ci-cd"})
        assert answer.status == 201, f"provisioning {name} gave {answer}"
        return Ice(self.served.url, answer.json["token"])

    async def ready(self):
        """Status and body of /readyz."""
        async with self._session.get(f"{self.served.url}/readyz") as answer:
            return answer.status, await answer.json(content_type=None)

    async def is_ready(self, **more):
        """Wait for a 200; `more` is what it says besides."""
        expected = 200, {"status": "ready", **more}
        async with asyncio.timeout(PATIENCE):
            while await self.ready() != expected:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)

    async def is_not_ready(self, said):
        status = 200
        async with asyncio.timeout(PATIENCE):
            while status == 200:
                status, told = await self.ready()
        assert status == 503
        assert said in told["detail"], f"/readyz was expected to say why, and said {told}"

    async def is_refused(self, said):
        """Actions and admissions are refused, the session stays, and /readyz says why."""
        before = await self.newest()
        for action in ("reprovision", "deregister"):
            name = self.names[action == "reprovision"]
            answer = await self.api.post(f"/ices/{name}/{action}")
            problem = expect_refused(answer, 503, "store-unavailable")
            assert "Nothing was changed" in problem["detail"]
            assert int(answer.headers["Retry-After"]) >= 1
        await self.is_not_ready(said)
        for ice in (self.new, self.here):
            refused = await ice.refused()
            assert (refused.status, refused.code) == (503, "store-unavailable")
            assert refused.problem["retry"] is True
        await self.connection.round_trip()
        return before

    async def newest(self):
        answer = await self.api.get("/events?limit=200")
        return answer.json["items"][-1]["seq"] if answer.status == 200 else None

    async def is_over(self):
        """By itself: all is as before, and works."""
        await self.is_ready()
        await self.connection.round_trip()
        await self.connect(self.new)
        answer = await self.api.post(f"/ices/{self.names[0]}/deregister")
        assert answer.status == 200, f"a deregistration was expected to be done, not {answer}"
        await self.connection.expect_dropped(4101)

    def said(self, part):
        """How often the log says that a fault of `part` began, and that it ended."""
        lines = [json.loads(line) for line in self.served.err.lines if line.startswith("{")]
        events = [line["event"] for line in lines if line.get("part") == part]
        return events.count("fault"), events.count("fault over")

    @contextlib.asynccontextmanager
    async def fault(self, part):
        """One line of the log when it begins and one when it ends, however many are refused meanwhile."""
        begun, ended = self.said(part)
        yield
        async with asyncio.timeout(PATIENCE):
            while self.said(part)[1] == ended:  # noqa: ASYNC110 - a thread reads the log
                await asyncio.sleep(0.05)
        assert self.said(part) == (begun + 1, ended + 1), f"the log of {part}: {self.served.err}"

    async def noticed(self, part):
        """Wait for the line that says that a fault of `part` has begun."""
        async with asyncio.timeout(PATIENCE):
            while len(set(self.said(part))) == 1:  # noqa: ASYNC110 - a thread reads the log
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def beginning(served, token, name):
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        day = Day(served, session, Api(session, served.url, token))
        try:
            await day.begin(name)
            yield day
        finally:
            await day.close()


@pytest.fixture
async def day(served, token, request):
    name = request.function.__name__.removeprefix("test_").replace("_", "-")[:40]
    async with beginning(served, token, name) as begun:
        yield begun


# --- the store -----------------------------------------------------------------------------------


async def test_the_disk_is_full(day):
    """Nothing can be written any more; the process may still be served from what it has read."""
    async with day.fault("store"):
        resource.prlimit(day.pid, resource.RLIMIT_FSIZE, (0, UNLIMITED))
        seq = await day.is_refused("its disk is full or fails: make room")
        await day.noticed("store")
        assert await day.newest() == seq, "what was refused must not be in the log"
        assert (await day.api.get(f"/ices/{day.names[0]}")).json["status"] == "registered"
        resource.prlimit(day.pid, resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))
        await day.is_over()


async def test_the_file_is_taken_away_and_put_back(day):
    async with day.fault("store"):
        aside = day.path.rename(day.path.with_name("aside.db"))
        await day.is_refused("is gone or was replaced; put both back, or restart")
        await day.noticed("store")
        aside.rename(day.path)
        await day.is_over()


async def test_the_file_is_damaged_and_put_back(day):
    with contextlib.closing(sqlite3.connect(day.path)) as other:
        other.execute("PRAGMA busy_timeout=10000")
        # The gateway's own may go on just now.
        await until(lambda: not other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
    good = day.path.read_bytes()
    async with day.fault("store"):
        with day.path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(len(good) - 4096))
        await day.is_refused("it is damaged, or its disk fails")
        await day.noticed("store")
        with day.path.open("r+b") as file:
            file.write(good)
        await day.is_over()


def test_a_command_on_a_full_disk_says_so_in_one_line(served, token):
    add = ("users", "add", "late", "--role", "member", "--no-password")
    done = subprocess.run(
        command(*add, "--database", served.settings.database_url),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PROCESS_PATIENCE,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"ice-gateway: the database {served.path} cannot be used: disk I/O error;"
        " its disk is full or fails: make room, or read the system's log\n"
    )


# --- the key file --------------------------------------------------------------------------------


async def test_the_key_file_is_lost_and_put_back(day):
    """The keys in memory open tokens, so ICEs are admitted; new tokens cannot be made."""
    keys = day.served.settings.key_file
    async with day.fault("keys"):
        aside = keys.rename(keys.with_name("aside.keys"))
        missing = (
            f"the key file {keys} is missing: put it back from a backup; without it no token can be"
            " made, and the gateway does not start again"
        )
        await day.is_ready(faults={"keys": missing})
        for call, body in (
            ("/ices", {"ice_name": "never", "ice_type": "ci-cd"}),
            (f"/ices/{day.names[1]}/reprovision", None),
            (f"/ices/{day.names[0]}/reregister", None),
        ):
            problem = expect_refused(await day.api.post(call, body), 503, "keys-unavailable")
            assert f"{keys} is missing" in problem["detail"]
            assert "put it back" in problem["detail"]
        assert (await day.api.get("/ices/never")).status == 404
        await day.connection.round_trip()
        await day.connect(day.new)
        await day.noticed("keys")
        aside.rename(keys)
        await day.is_over()
    await day.provision("after-all")


# --- file handles --------------------------------------------------------------------------------


def lowest_free(pid):
    """The number that the next handle of a process will have."""
    used = {int(handle.name) for handle in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in range(len(used) + 1) if number not in used)


@contextlib.contextmanager
def handles(day, count):
    """Let the gateway have this many handles."""
    _, hard = before = resource.prlimit(day.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(day.pid, resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.prlimit(day.pid, resource.RLIMIT_NOFILE, before)


async def test_file_handles_run_short(day):
    async with day.fault("handles"):
        ices = [await day.provision(f"short-of-handles-{number}") for number in range(20)]
        lowest = lowest_free(day.pid)
        limit = next(n for n in itertools.count(lowest) if n - min(RESERVE, n // 4) >= lowest + 8)
        with handles(day, limit):
            # What waits for a request gives way to the first of them.
            connections = await day.fill(ices)
            await day.is_not_ready("file handles are in use; raise the limit")
            refused = await day.new.refused()
            assert (refused.status, refused.code) == (503, "overloaded")
            assert "file handles" in refused.problem["detail"]
            assert int(refused.headers["Retry-After"]) >= 1
            # Whoever has a session takes its place, and an admin can act.
            again = await day.connect(day.here)
            await day.connection.expect_dropped(4103)
            day.connection = again
            await day.provision("in-spite-of-all")
            await day.noticed("handles")
            for connection in connections:
                await connection.close()
            await day.is_ready()
        await day.is_over()


async def test_strangers_that_hold_all_handles_give_way(day):
    limit = lowest_free(day.pid) + 400
    with handles(day, limit):
        for number in range(400):
            writer = await day.dial()
            writer.write(b"G")
            await writer.drain()
            if number % 20 == 19:
                # It has accepted these: more in one turn of its loop than it has handles are let go of.
                await day.connection.round_trip()
        connection = await day.connect(day.new)
        await connection.round_trip()
        await day.provision("in-spite-of-strangers")
        await day.connection.round_trip()
    await day.is_ready()


async def test_there_is_no_file_handle_left(day):
    """Whoever comes is let go at once; whoever is there stays."""
    async with day.fault("handles"):
        with handles(day, lowest_free(day.pid)):
            # Connections that were kept alive may end just now: others take their handles.
            idle = [await day.dial() for _ in range(3)]

            async def came():
                try:
                    await day.connect(day.new)
                except (ConnectionError, Refused) as error:
                    return error
                return None

            async with asyncio.timeout(PATIENCE):
                while not isinstance(met := await came(), ConnectionError):
                    assert met is not None
                    assert met.code == "overloaded"
                    idle.append(await day.dial())
            for writer in idle:
                writer.close()
            await day.connection.round_trip()
            await day.noticed("handles")
        await day.is_over()


# --- the end of it -------------------------------------------------------------------------------


async def test_it_stops_in_order_on_the_worst_of_days(tmp_path):
    """A gateway of its own is stopped while nothing can be written."""
    with start(tmp_path) as served:
        async with beginning(served, await make_token(served), "the-worst") as day:
            resource.prlimit(day.pid, resource.RLIMIT_FSIZE, (0, UNLIMITED))
            await day.is_refused("its disk is full or fails")
            assert await asyncio.to_thread(day.served.stop, signal.SIGTERM) == 0
            await day.connection.expect_dropped(1012)
            assert "Traceback" not in day.served.err.end()


# --- the clock; in this process, where it can be set ---------------------------------------------


@pytest.fixture
def clock():
    return StandingClock()


@pytest.fixture
async def timed(tmp_path, clock):
    async with harness(tmp_path, clock=clock, monotonic=clock.monotonic) as running:
        yield running


async def connect(ice, clock, true):
    """As an ICE whose clock says `true` does it; how many handshakes that took."""
    refused = await ice.refused(iat=true) if abs(true - clock.unix()) > 60 else None
    if refused is None:
        return await ice.connect(iat=true), 1
    assert (refused.status, refused.code) == (401, "use-dpop-nonce")
    assert "correct the one that is wrong" in refused.problem["detail"]
    return await ice.connect(iat=true, nonce=refused.headers["DPoP-Nonce"]), 2


@pytest.mark.parametrize("jump", [-86400, -3600, 3600, 6 * 86400])
async def test_the_clock_jumps_and_everybody_is_admitted_all_the_same(timed, clock, jump):
    ice, unused = await timed.provision("lab-1"), await timed.provision("lab-2")
    connection = await ice.connect(iat=clock.unix())
    true = clock.unix()
    clock.now += timedelta(seconds=jump)
    await connection.round_trip()
    again, took = await connect(ice, clock, true)
    assert took == 2
    await connect(unused, clock, true)
    clock.now -= timedelta(seconds=jump)
    await connect(ice, clock, clock.unix())
    clock.now += timedelta(seconds=jump)
    answer = await timed.act("lab-1", "deregister")
    assert 0 <= answer["dropped"][0]["elapsed_ms"] < 10_000
    assert (await ice.refused(iat=clock.unix())).code in ("deregistered", "use-dpop-nonce")
    assert again.welcome["ice_name"] == "lab-1"


async def test_a_proof_is_good_once_even_if_the_clock_is_set_back(timed, clock):
    ice, other = await timed.provision("lab-1"), await timed.provision("lab-2")
    stolen = ice.headers(iat=clock.unix())
    await ice.connect(stolen)
    clock.now += timedelta(hours=1)
    await other.connect(iat=clock.unix())  # by then nobody needs to remember the first
    clock.now -= timedelta(hours=1)
    assert (await ice.refused(stolen)).code == "use-dpop-nonce"


async def test_the_newest_token_is_the_later_even_if_the_clock_was_set_back(timed, clock):
    """Clients compare `iat` before they put a new token in the place of a stored one."""
    ice = await timed.provision()
    issued = []
    for minutes in (0, -60, 1, 1, -60, 1):
        clock.now += timedelta(minutes=minutes)
        answer = await timed.act("lab-1", "reprovision")
        issued.append(datetime.fromisoformat(answer["ice"]["provisionedon"]))
        expires = datetime.fromisoformat(answer["ice"]["expireson"])
        assert expires == clock() + timedelta(days=7), "the time it has counts from now"
        newest = timed.ice(answer["token"])
    assert issued == sorted(set(issued)), "each was expected to be later than the one before"
    assert (await ice.refused(iat=clock.unix())).code == "token-replaced"
    await newest.connect(iat=clock.unix())


async def test_what_happens_after_the_clock_was_set_back_is_shown_first(timed, clock):
    ice = await timed.provision()
    stranger = timed.ice(ice.token)
    await (await ice.connect(iat=clock.unix())).leave()
    await timed.settled()
    clock.now -= timedelta(seconds=30)
    await stranger.refused(iat=clock.unix())
    told = await timed.eventually(
        "/ices/lab-1/connections", lambda answer: len(answer.json["items"]) == 3
    )
    assert [item["event"] for item in told.json["items"]] == ["refused", "closed", "admitted"]


COOKIE = Secret("a cookie")


@pytest.fixture
async def logins(timed, clock):
    """The context, with a login that was used just now."""
    now = clock()
    login = Login(COOKIE.digest(), "root", "192.0.2.7", now, now)
    event = Event(now, ADMIN, "log-in", None, None)
    oldest = login_rules().oldest(now)
    engine = timed.gateway.engine
    await engine.write(lambda transaction: add_login(transaction, login, event, oldest))
    return LoginService(
        engine=engine,
        clock=clock,
        passwords=Passwords(),
        failures=LoginFailures(engine, clock, lambda _: None),
        rules=login_rules(idle=timedelta(minutes=30)),
    )


async def test_a_clock_that_was_set_back_makes_no_login_last_longer(logins, clock):
    now = clock.now
    for seconds, good in ((0, True), (-59, True), (-60, False), (-86400, False), (0, True)):
        clock.now = now + timedelta(seconds=seconds)
        found = await logins.authenticate(COOKIE, used=False)
        assert (found is not None) is good, f"a login used {-seconds} s in the future"


async def test_whoever_only_looks_can_do_so_while_nothing_can_be_written(timed, logins, clock):
    engine, now = timed.gateway.engine, clock.now
    await engine._writer.execute("PRAGMA query_only=ON")
    for minutes, good in ((2, True), (29, True), (30, False)):
        clock.now = now + timedelta(minutes=minutes)
        assert (await logins.authenticate(COOKIE) is not None) is good, f"after {minutes} minutes"
        assert (await timed.admin.get("/me")).status == 200, "its last use cannot be written"
    await engine._writer.execute("PRAGMA query_only=OFF")


# --- what it looks like from outside -------------------------------------------------------------


async def test_the_metrics_tell_of_every_fault(timed):
    def shown():
        text = generate_latest(timed.gateway.node._meters.registry).decode()
        lines = [line for line in text.splitlines() if line.startswith("ice_gateway_fault{")]
        return {line.split('"')[1]: float(line.split()[-1]) for line in lines}

    well = {"store": 0, "restore": 0, "keys": 0, "handles": 0, "pause": 0}
    assert shown() == well
    engine = timed.gateway.engine
    await engine._writer.execute("PRAGMA query_only=ON")
    answer = await timed.admin.post("/ices", {"ice_name": "lab-1", "ice_type": "ci-cd"})
    expect_refused(answer, 503, "store-unavailable")
    assert shown() == well | {"store": 1}
    await engine._writer.execute("PRAGMA query_only=OFF")
    await engine.try_out()
    assert shown() == well
    timed.gateway.node.restore_hold.reason = "it is held"
    assert shown() == well | {"restore": 1}
