"""`ice-gateway demo`: the life of an ICE on one screen, with real processes, sockets and a real file.

A line is printed only after its step was observed; a step that fails ends the demo with status 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from rich.console import Console
from rich.text import Text

from gateway.core.times import from_text, utc_now

_STEP_TIMEOUT: Final = 20.0
"""Seconds within which each step has to happen."""
_RUN_TIMEOUT: Final = 60.0
"""Seconds within which an operation has to end, which may wait for another one."""
_POLL: Final = 0.1
"""Seconds between two looks at what is about to happen."""
_POOL: Final = "linux"
_COLOURS: Final = {"gateway": "cyan", "admin": "magenta", "thief": "red", "demo": "green"}
_HAS_PYTEST: Final = importlib.util.find_spec("pytest") is not None
_TESTS: Final = """
import time

def test_the_page_loads(): time.sleep(0.3)
def test_somebody_logs_in(): time.sleep(0.3)
def test_the_report_is_right(): time.sleep(0.3)
"""


class NotObserved(Exception):
    """A step of the demo did not happen."""


class Story:
    """Prints who did what, a line for each step."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._started = time.monotonic()

    def say(self, who: str, what: str) -> None:
        """Print a line: seconds since the start, who did what."""
        line = Text(f"{time.monotonic() - self._started:6.2f}s  ", style="dim")
        line.append(f"{who:<9}", style=_COLOURS.get(who, "yellow"))
        line.append(what)
        self._console.print(line, soft_wrap=True)

    def require(self, what: str, expected: object, observed: object) -> None:
        """Raise `NotObserved` unless `observed` equals `expected`."""
        if observed != expected:
            raise NotObserved(f"{what}: expected {expected!r}, observed {observed!r}")


@dataclass(frozen=True, slots=True)
class Program:
    """A running gateway, command or client."""

    name: str
    process: asyncio.subprocess.Process

    async def line(self, beginning: str) -> str:
        """The next output line that, after its time, starts with `beginning`. Raises `NotObserved`."""
        assert self.process.stdout is not None  # noqa: S101 - it was opened with a pipe
        try:
            async with asyncio.timeout(_STEP_TIMEOUT):
                while line := (await self.process.stdout.readline()).decode().rstrip():
                    if (start := line.find(beginning)) >= 0:
                        return line[start:]
        except TimeoutError:
            raise NotObserved(f"{self.name} did not say {beginning!r} in time") from None
        status, reason = await self.end()
        raise NotObserved(f"{self.name} ended with status {status}: {reason}")

    async def end(self) -> tuple[int, str]:
        """Wait for its end; return the exit status and the last line of its standard error."""
        async with asyncio.timeout(_STEP_TIMEOUT):
            _, errors = await self.process.communicate()
        lines = errors.decode().strip().splitlines()
        return self.process.returncode or 0, lines[-1] if lines else ""


@contextlib.asynccontextmanager
async def _program(name: str, *arguments: str) -> AsyncIterator[Program]:
    """Run `python -m ...`, and kill it on leaving if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # not the user's folder, which may have a client.py
        "-m",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "ICE_GATEWAY_METRICS__LISTEN": ""},
    )
    try:
        yield Program(name, process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


class Admin:
    """A client of the admin API."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str) -> None:
        self._session = session
        self._api = f"{url}/admin/api/v1"
        self._headers = {"Authorization": f"Bearer {token}"}

    async def call(self, status: int, method: str, path: str, json: Any = None) -> Any:
        """Make a call; return its JSON. Raises `NotObserved` unless it is answered with `status`."""
        async with self._session.request(
            method, self._api + path, json=json, headers=self._headers
        ) as response:
            answer = await response.json()
            if response.status != status:
                raise NotObserved(f"{method} {path} was answered {response.status}: {answer}")
            return answer

    async def follow(self, path: str) -> AsyncIterator[tuple[str, Any]]:
        """The events of a stream until it ends, each with its name and JSON."""
        async with self._session.get(self._api + path, headers=self._headers) as response:
            event = ""
            async for line in response.content:
                name, _, value = line.decode().rstrip().partition(": ")
                if name == "event":
                    event = value
                elif name == "data":
                    yield event, msgspec.json.decode(value)


Scenes = Callable[[Story, Path, list[str]], Coroutine[Any, Any, None]]


async def _story(story: Story, folder: Path, options: list[str]) -> None:
    async def command(*arguments: str) -> str:
        async with _program("ice-gateway", "gateway", *arguments, *options) as program:
            output, _ = await program.process.communicate()
            story.require(f"exit status of {arguments[0]}", 0, program.process.returncode)
            return output.decode().strip()

    await command("users", "add", "admin", "--role", "admin", "--no-password")
    await command("users", "add", "alice", "--role", "member", "--no-password")
    token = await command("api-tokens", "create", "--user", "admin", "--name", "demo")
    async with contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(
            _program("the gateway", "gateway", "serve", "--port", "0", *options)
        )
        started = await gateway.line("ice-gateway ")
        url = started.split(" serves ")[1].split()[0]
        story.say("gateway", f"started: {url}, a new SQLite file")
        session = await stack.enter_async_context(aiohttp.ClientSession())
        await _life(story, Admin(session, url, token), url, folder)
        gateway.process.send_signal(signal.SIGTERM)
        status, _ = await gateway.end()
        story.require("the gateway's exit status after SIGTERM", 0, status)
        story.say("gateway", "stopped on SIGTERM, exit status 0")


def run_demo(
    config: Path | None = None, database: str | None = None, scenes: Scenes = _story
) -> int:
    """Run the demo; return 0 only if every step happened, else 1.

    Args:
        config: a settings file for the gateway.
        database: a new database to keep; by default a temporary one.
        scenes: what happens, in a folder and with the options of the gateway.
    """
    story = Story()
    try:
        with tempfile.TemporaryDirectory(prefix="ice-demo-") as folder:
            options = ["--database", database or f"sqlite:///{folder}/demo.db"]
            if config is not None:
                options += ["--config", str(config)]
            asyncio.run(scenes(story, Path(folder), options))
    except (NotObserved, TimeoutError, aiohttp.ClientError) as error:
        story.say("demo", f"FAILED: {str(error) or 'it took too long'}")
        return 1
    except KeyboardInterrupt:
        story.say("demo", "interrupted")
        return 1
    story.say("demo", "all of it happened")
    return 0


async def _life(story: Story, admin: Admin, url: str, folder: Path) -> None:
    def client(
        name: str, token_file: Path, state: str, *more: str
    ) -> contextlib.AbstractAsyncContextManager[Program]:
        arguments = ("--gateway", url, "--token-file", str(token_file), *more)
        return _program(name, "client", "run", *arguments, "--state-dir", str(folder / state))

    async def provision(name: str, ice_type: str, user: str | None) -> Path:
        wanted = {"ice_name": name, "ice_type": ice_type, "provisionedto": user}
        answer = await admin.call(201, "POST", "/ices", wanted)
        story.require(f"status of {name}", "provisioned", answer["ice"]["status"])
        owner = f"for {user}" if user else "of no user"
        story.say(
            "admin",
            f"provisioned {name} ({ice_type}, {owner}): {answer['ice']['status']},"
            f" an encrypted token of {len(answer['token'])} characters, shown once",
        )
        return _save(folder / f"{name}.token", answer["token"])

    lab_token = await provision("lab-1", "normal", "alice")
    build_token = await provision("build-7", "ci-cd", None)
    schedule = await _plan(story, admin)
    async with client("build-7", build_token, "build", *_suite(folder)) as build:
        async with client("lab-1", lab_token, "lab") as lab:
            for ice in (lab, build):
                line = await ice.line("admitted as ")
                entry = await admin.call(200, "GET", f"/ices/{ice.name}")
                story.require(f"status of {ice.name}", "registered", entry["status"])
                said = line.split(", ")[0]
                story.say(ice.name, f"{said}; in the table it is now {entry['status']}")
            await _work(story, admin)
            await _theft(story, client("thief", lab_token, "thief"))
            await _deregistration(story, admin, lab, build)
        renewed = await admin.call(200, "POST", "/ices/lab-1/reregister")
        story.say("admin", f"reregistered lab-1: {renewed['ice']['status']}, a new token")
        new_token = _save(folder / "lab-1.new.token", renewed["token"])
        async with client("lab-1", new_token, "lab") as lab:
            await _return(story, admin, lab)
        if schedule is not None:
            await _occurrence(story, admin, schedule)


async def _plan(story: Story, admin: Admin) -> Any:
    """Put build-7 into a pool, and schedule the suite there; without pytest there is no schedule.

    A cron has no seconds, so this is done early: most of its minute passes while the story goes on.
    """
    labels = {"os": "linux"}
    await admin.call(200, "PATCH", "/ices/build-7", {"labels": labels})
    pool = await admin.call(201, "PUT", f"/pools/{_POOL}", {"labels": labels})
    story.require("ICEs of the pool", 1, pool["ices"]["total"])
    story.say("admin", f"labelled build-7 os=linux, and made the pool {_POOL}: it has 1 ICE")
    if not _HAS_PYTEST:
        return None
    params = {"suite": "smoke"}
    wanted = {"name": "smoke", "pool": _POOL, "cron": "* * * * *", "params": params}
    schedule = await admin.call(201, "POST", "/schedules", wanted)
    due = from_text(schedule["next"][0])
    story.say(
        "admin",
        f"scheduled the suite smoke on this pool for the start of every minute: next at {due:%H:%M:%S} UTC,"
        f" in {_seconds_until(due):.0f} s",
    )
    return schedule


async def _return(story: Story, admin: Admin, lab: Program) -> None:
    line = await lab.line("admitted as lab-1")
    entry = await admin.call(200, "GET", "/ices/lab-1")
    story.require("status of lab-1", "registered", entry["status"])
    story.say("lab-1", f"{line.split(', ')[0]} again, generation {entry['generation']}")
    events = await admin.call(200, "GET", "/events?ice_name=lab-1")
    actions = [event["action"] for event in events["items"]]
    wanted = ["provision", "register", "deregister", "reregister", "register"]
    story.require("the audit log of lab-1", wanted, actions)
    story.say("gateway", f"audit log of lab-1: {', '.join(actions)}")


async def _occurrence(story: Story, admin: Admin, schedule: Any) -> None:
    due = from_text(schedule["next"][0])
    left = _seconds_until(due)
    if left > 0:
        story.say("demo", f"waits {left:.0f} s for the time of the schedule")
        await asyncio.sleep(left)
    requested: list[Any] = []
    async with asyncio.timeout(_STEP_TIMEOUT):
        while not requested:
            listing = await admin.call(200, "GET", f"/operations?schedule={schedule['id']}")
            requested = listing["items"]
            await asyncio.sleep(0 if requested else _POLL)
    operation = requested[-1]  # the newest comes first
    story.require("the time of the operation", due, from_text(operation["run_at"]))
    late = (from_text(operation["created"]) - due).total_seconds()
    story.say(
        "gateway",
        f"the schedule's time came, {due:%H:%M:%S} UTC: {late * 1000:.0f} ms later it requested"
        f" the suite of the pool {_POOL}",
    )
    operation = await _end(admin, operation)
    _require_suite(story, operation)
    story.say(
        operation["ice_name"], f"{operation['state']}: {operation['result']['tests']} tests again"
    )


def _seconds_until(moment: datetime) -> float:
    return (moment - utc_now()).total_seconds()


def _suite(folder: Path) -> tuple[str, ...]:
    """Write a small pytest suite; return the client's options that allow only this suite."""
    if not _HAS_PYTEST:
        return ()
    suite = folder / "smoke"
    suite.mkdir()
    (suite / "test_smoke.py").write_text(_TESTS, encoding="utf-8")
    config = folder / "build.toml"
    config.write_text(f"[suites]\nsmoke = '{suite}'\n", encoding="utf-8")
    return "--handlers", "client.examples.pytest_suites", "--config", str(config)


async def _work(story: Story, admin: Admin) -> None:
    wanted = {"kind": "scrape", "params": {}}
    refused = await admin.call(409, "POST", "/ices/build-7/operations", wanted)
    story.require("the refusal of scrape", "kind-not-allowed", refused["code"])
    story.say("admin", f"scrape is refused for build-7: {refused['detail']}")
    if not _HAS_PYTEST:
        story.say("demo", "pytest is not installed, so build-7 runs no suite")
        return
    wanted = {"kind": "remote-execute", "params": {"suite": "smoke"}}
    operation = await admin.call(202, "POST", f"/pools/{_POOL}/operations", wanted)
    story.say("admin", f"requested remote-execute of the pool {_POOL}: {operation['state']}")

    def tell(progress: Any) -> None:
        story.say("build-7", f"{progress['fraction']:.0%} {progress['message']}")

    operation = await _end(admin, operation, tell)
    _require_suite(story, operation)
    result = operation["result"]
    story.say(
        operation["ice_name"],
        f"{operation['state']}: {result['tests']} tests, {result['failures']} failures,"
        f" a JUnit report of {len(result['junit'])} characters",
    )


async def _end(admin: Admin, operation: Any, tell: Callable[[Any], None] | None = None) -> Any:
    """The operation once it has ended; `tell` gets its progress until then."""
    async with asyncio.timeout(_RUN_TIMEOUT):
        async for event, document in admin.follow(f"/operations/{operation['id']}/stream"):
            if event == "progress" and tell is not None:
                tell(document)
            operation = document if event == "result" else operation
    return operation


def _require_suite(story: Story, operation: Any) -> None:
    """Raise `NotObserved` unless build-7 ran the suite, and every test passed."""
    story.require("the operation's state", "succeeded", operation["state"])
    story.require("the ICE that ran it", "build-7", operation["ice_name"])
    result = operation["result"]
    story.require("tests and failures", (3, 0), (result["tests"], result["failures"]))


async def _theft(story: Story, starting: contextlib.AbstractAsyncContextManager[Program]) -> None:
    async with starting as thief:
        status, reason = await thief.end()
    story.require("the second machine's exit status", 3, status)
    if not _plain(reason).startswith("key-mismatch"):
        raise NotObserved(f"the second machine: expected key-mismatch, observed {reason!r}")
    story.say("thief", f"the same token on a second machine is refused: {_plain(reason)}")


async def _deregistration(story: Story, admin: Admin, lab: Program, build: Program) -> None:
    sent = time.monotonic()
    closed = asyncio.create_task(_timed(lab.line("closed 4101")))
    answer = await admin.call(200, "POST", "/ices/lab-1/deregister")
    line, at = await closed
    [dropped] = answer["dropped"]
    story.require("close code", 4101, dropped["code"])
    story.say(
        "admin",
        f"deregistered lab-1: {answer['ice']['status']}; its connection was dropped"
        f" {dropped['elapsed_ms']:.1f} ms after the action began, and the change was on disk",
    )
    story.say("lab-1", f"{line.split(':')[0]}, {(at - sent) * 1000:.1f} ms after the admin's call")
    status, reason = await lab.end()
    story.require("exit status of lab-1", 3, status)
    story.say("lab-1", f"stopped by itself: {_plain(reason)}")
    entry = await admin.call(200, "GET", "/ices/build-7")
    if entry["connection"] is None or build.process.returncode is not None:
        raise NotObserved("build-7 did not stay connected")
    story.say("build-7", "is still connected")


async def _timed(line: Any) -> tuple[str, float]:
    return await line, time.monotonic()


def _plain(reason: str) -> str:
    return reason.removeprefix("ice-client: ")


def _save(path: Path, token: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(token, encoding="ascii")
    return path
