"""An abuser at a real gateway, and what honest ICEs notice of it.

    python -m tests.torture.abuse [slow-senders garbage …] [--seconds 8]

A name may be given twice, to see whether memory goes on growing.

The gateway is a process of its own, `ice-gateway serve` with its defaults. One honest ICE stays
connected all the time and asks something ten times a second; others come fresh, twenty a second, every
fifth of them provisioned a moment before. Beside them an abuser, a process too, works through
`tests.torture.attacks`, one scenario after the other. A table tells what was tried, how soon honest ICEs were
admitted, and the gateway's memory, file handles and tasks before, at the peak and after. The exit
status is 1 where something was not as it has to be: each such line begins with `FAILED`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from tests.support.ice import Connection, Ice, Refused
from tests.torture import attacks

API = "/admin/api/v1"
PASSWORD = "correct-horse-battery"
FRESH_EVERY = 0.05
"""Seconds between two honest ICEs that come."""
SETTLING = 25.0
"""Seconds after a scenario for all its connections to be gone: what lingers is cut off by then."""
ROGUES = 6
LISTED = 200
"""ICEs in the table for the big listing."""
STREAMS = 32
GROWTH = {
    "slow-senders": 150,
    "slow-readers": 500,
    "garbage": 60,
    "guess-logins": 200,
    "guess-tokens": 60,
    "flood": 60,
    "never-read": 100,
    "reconnect": 60,
    "spoof": 150,
    "inject": 150,
}
"""MiB by which the gateway may grow within a scenario."""


# --- the gateway -----------------------------------------------------------------------------------


def serve(counts: Path, arguments: list[str]) -> None:
    """The gateway's own command; SIGUSR1 has it say how many tasks its loop has."""

    def count(*_: object) -> None:
        written = counts.with_suffix(".new")
        written.write_text(str(len(asyncio.all_tasks())))
        written.rename(counts)

    signal.signal(signal.SIGUSR1, count)
    from gateway.cli import main  # noqa: PLC0415 - in this process alone

    main(arguments)


class Gateway:
    """The process, seen from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = f"sqlite:///{folder}/abuse.db"
        self.log = folder / "log"
        self._counts = folder / "tasks"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.metrics = f"127.0.0.1:{free.getsockname()[1]}"

    def command(self, *arguments: str, given: str | None = None) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *arguments, "--database", self.database],
            check=True,
            capture_output=True,
            text=True,
            input=given,
        )
        return done.stdout.strip()

    def on_a_terminal(self, *arguments: str) -> bytes:
        """What a command shows to somebody who sits there."""
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "gateway", *arguments, "--database", self.database],
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": "dumb", "COLUMNS": "500"},
        ):
            os.close(theirs)
            said = b""
            with contextlib.suppress(OSError):  # how Linux tells that the other end has gone
                while True:
                    said += os.read(ours, 65536)
        os.close(ours)
        return said

    @contextlib.contextmanager
    def running(self) -> Iterable[None]:
        environment = os.environ | {
            "ICE_GATEWAY_METRICS__LISTEN": self.metrics,
            "ICE_GATEWAY_ICE__HEARTBEAT": "5s",
            "ICE_GATEWAY_ICE__MAX_CONNECTIONS": "10000",  # or it warns of too few file handles
        }
        with (
            self.log.open("wb") as log,
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.torture.abuse", "--serve", str(self._counts)),
                    *("serve", "--port", "0", "--database", self.database),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            ) as self.process,
        ):
            assert self.process.stdout is not None
            self.url = self.process.stdout.readline().split(" serves ")[1].split()[0]
            try:
                yield
            finally:
                self.process.terminate()
                self.stopped = self.process.wait(20)

    def rss(self) -> float:
        """MiB of memory that it has."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def fds(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    async def tasks(self) -> int:
        self._counts.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(10):
            while not self._counts.exists():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.01)
        return int(self._counts.read_text())


# --- honest ICEs -----------------------------------------------------------------------------------


def part(values: list[float], share: float) -> float:
    """A percentile, in ms."""
    ordered = sorted(values) or [0.0]
    return ordered[round(share * (len(ordered) - 1))] * 1000


@dataclass
class Noticed:
    """What honest ICEs and an admin noticed within a scenario; times in seconds."""

    admissions: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    actions: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Honest:
    """One that stays, many that come and go."""

    def __init__(self, gateway: Gateway, token: str) -> None:
        self._gateway = gateway
        self._token = token
        self._known: list[Ice] = []
        self._number = 0
        self._coming: set[asyncio.Task[None]] = set()
        self._may_come = asyncio.Event()
        self.noticed = Noticed()
        self.tokens: list[str] = []

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """The admin API, each time on a new connection."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
            session.request(
                method,
                f"{self._gateway.url}{path}",
                json=body,
                headers={"Authorization": f"Bearer {self._token}"},
            ) as answer,
        ):
            assert answer.status < 300, f"{method} {path} answered {answer.status}"
            is_json = "json" in answer.headers["Content-Type"]
            return await (answer.json() if is_json else answer.text())

    async def provision(self, name: str) -> str:
        body = {"ice_name": name, "ice_type": "ci-cd"}
        token = (await self.call("POST", f"{API}/ices", body))["token"]
        self.tokens.append(token)
        return token

    async def stay(self) -> None:
        """Hold one connection, and have it answered ten times a second."""
        ice = Ice(self._gateway.url, await self.provision("honest-stays"))
        connection = await ice.connect()
        self.stays = connection
        while True:
            await asyncio.sleep(0.1)
            began = time.perf_counter()
            try:
                await self._ask(connection)
            except (AssertionError, OSError, TimeoutError) as error:
                self.noticed.faults.append(f"the honest ICE that stays was lost: {error!r}")
                connection = await ice.connect()
            else:
                self.noticed.answers.append(time.perf_counter() - began)

    async def _ask(self, connection: Connection) -> None:
        answer = await connection.request("no.such.method", "honest")
        assert answer["id"] == "honest"

    async def come(self) -> None:
        """Have one come every `FRESH_EVERY` seconds, while they may."""
        while True:
            await self._may_come.wait()
            task = asyncio.create_task(self._one())
            self._coming.add(task)
            task.add_done_callback(self._coming.discard)
            await asyncio.sleep(FRESH_EVERY)

    async def _one(self) -> None:
        self._number += 1
        try:
            if self._number % 5 == 0 or not self._known:
                began = time.perf_counter()
                token = await self.provision(f"honest-{self._number}")
                self.noticed.actions.append(time.perf_counter() - began)
                ice = Ice(self._gateway.url, token)
            else:
                ice = self._known.pop(0)
            began = time.perf_counter()
            connection = await ice.connect()
            self.noticed.admissions.append(time.perf_counter() - began)
            self._known.append(ice)
            await connection.leave()
            await connection.close()
            ice.connections.clear()
        except Refused as refused:
            self.noticed.faults.append(f"an honest ICE was refused: {refused.code}")
        except (AssertionError, OSError, TimeoutError, aiohttp.ClientError) as error:
            self.noticed.faults.append(f"an honest ICE was not admitted: {error!r}")

    async def pause(self) -> None:
        """Let nobody come until `go_on`."""
        self._may_come.clear()
        while self._coming:
            await asyncio.wait(self._coming)
        await asyncio.sleep(FRESH_EVERY * 2)

    def go_on(self) -> None:
        self.noticed = Noticed()
        self._may_come.set()


# --- scenarios -------------------------------------------------------------------------------------


@dataclass
class Row:
    """The figures of one scenario."""

    name: str
    attempts: int
    seconds: float
    noticed: Noticed
    before: tuple[float, int, int]
    peak: tuple[float, int, int]
    """The most memory and file handles, and the handles when the abuser was about to end."""
    after: tuple[float, int, int]
    settled: float

    def line(self) -> str:
        noticed, (rss, fds, tasks) = self.noticed, self.before
        admissions = noticed.admissions
        return (
            f"{self.name:<13}{self.attempts:>9,}{self.attempts / self.seconds:>9,.0f}"
            f"{len(admissions):>6}{part(admissions, 0.5):>7.1f}{part(admissions, 0.99):>8.1f}"
            f"{max(admissions, default=0) * 1000:>8.1f}{len(noticed.faults):>5}"
            f"{part(noticed.answers, 0.99):>8.1f}{part(noticed.actions, 0.99):>8.1f}"
            f"{rss:>7.0f}{self.peak[0]:>6.0f}{self.after[0]:>6.0f}"
            f"{fds:>6}{self.peak[1]:>6}{self.after[1]:>5}{tasks:>6}{self.after[2]:>4}"
            f"{self.settled:>8.1f}"
        )


HEADING = (
    f"{'scenario':<13}{'attempts':>9}{'/s':>9}{'honest':>6}{'p50 ms':>7}{'p99':>8}{'max':>8}{'lost':>5}"
    f"{'ask p99':>8}{'act p99':>8}{'MiB':>7}{'peak':>6}{'after':>6}{'fds':>6}{'peak':>6}{'then':>5}"
    f"{'tasks':>6}{'then':>4}{'settled':>8}"
)


class Torture:
    """Plays the scenarios and keeps what was not as it has to be."""

    def __init__(self, gateway: Gateway, honest: Honest, seconds: float) -> None:
        self.gateway = gateway
        self.honest = honest
        self.seconds = seconds
        self.failures: list[str] = []
        self.rows: list[Row] = []
        self.secrets: list[str] = [PASSWORD]
        self._read = 0
        self._closures: dict[str, float] = {}

    def expect(self, holds: object, sentence: str) -> None:
        if not holds:
            self.failures.append(sentence)
            print(f"FAILED {sentence}", flush=True)

    async def log_in(self, source: str = "127.0.0.1") -> str:
        """The cookie of a login with the right password."""
        data = attacks.login("admin", PASSWORD)
        host, port = self.gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), local_addr=(source, 0))
        writer.write(data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.close()
        cookie = head.partition("ice_login=")[2].partition(";")[0]
        self.expect(cookie, f"the right password from {source} was answered {head[:30]!r}")
        self.secrets.append(cookie or "no cookie")
        return cookie

    async def play(self, name: str) -> Row:
        turn = f"{name}-{len(self.rows)}" if any(row.name == name for row in self.rows) else name
        tokens = [await self.honest.provision(f"{turn}-{number}") for number in range(ROGUES)]
        seconds = {"slow-senders": 30.0, "slow-readers": 45.0}.get(name, self.seconds)
        stock = {
            "url": self.gateway.url,
            "seconds": seconds,
            "api_token": self.secrets[1],
            "cookie": self.secrets[2],
            "tokens": tokens,
        }
        await self.honest.pause()
        before = (self.gateway.rss(), self.gateway.fds(), await self.gateway.tasks())
        self.honest.go_on()
        async with self._peak() as peak:
            report = await self._abuse(name, stock)
        noticed = self.honest.noticed
        await self.honest.pause()
        began = time.monotonic()
        while True:
            after = (self.gateway.rss(), self.gateway.fds(), await self.gateway.tasks())
            if after[1:] <= before[1:] or time.monotonic() - began > SETTLING:
                break
            await asyncio.sleep(0.1)
        row = Row(
            name,
            report["attempts"],
            report["seconds"],
            noticed,
            before,
            (peak[0], int(peak[1]), int(peak[2])),
            after,
            time.monotonic() - began,
        )
        closures = await self._closed_since()
        self._judge(row, report["seen"] | {f"closed {code}": n for code, n in closures.items()})
        return row

    async def _closed_since(self) -> dict[str, int]:
        """How many sessions the gateway has counted as closed since it was asked last, by code."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{self.gateway.metrics}/metrics") as answer,
        ):
            text = await answer.text()
        older = self._closures
        found = re.findall(r'^ice_gateway_closures_total\{code="(.*)"\} (.*)$', text, re.MULTILINE)
        self._closures = {code: float(count) for code, count in found}
        grown = {code: round(n - older.get(code, 0)) for code, n in self._closures.items()}
        return {code: count for code, count in grown.items() if count}

    @contextlib.asynccontextmanager
    async def _peak(self) -> AsyncIterator[list[float]]:
        peak = [0.0, 0.0, 0.0]

        async def look() -> None:
            while True:
                peak[0] = max(peak[0], self.gateway.rss())
                peak[2] = self.gateway.fds()
                peak[1] = max(peak[1:])
                await asyncio.sleep(0.1)

        looking = asyncio.create_task(look())
        try:
            yield peak
        finally:
            looking.cancel()

    async def _abuse(self, name: str, stock: dict[str, Any]) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.torture.attacks", name),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**22,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(stock).encode() + b"\n")
        said = await process.stdout.readline()
        if said == b"staying\n":
            await self._look_at_listings()
            process.stdin.write(b"\n")
            said = await process.stdout.readline()
        await process.wait()
        assert said, f"the abuser of {name} died"
        return json.loads(said)

    # --- what has to hold ----------------------------------------------------------------------------

    def _judge(self, row: Row, seen: dict[str, int]) -> None:
        name = row.name
        for fault in row.noticed.faults[:5]:
            self.expect(not fault, f"{name}: {fault}")
        self.expect(row.noticed.admissions, f"{name}: no honest ICE came")
        growth = row.peak[0] - row.before[0]
        self.expect(
            growth <= GROWTH[name],
            f"{name}: the gateway grew by {growth:.0f} MiB, {GROWTH[name]} are allowed",
        )
        self.expect(
            row.after[1:] <= row.before[1:],
            f"{name}: file handles and tasks went from {row.before[1:]} to {row.after[1:]}",
        )
        if name.startswith("slow"):
            # Event streams of one user, and honest ICEs, may be there; all else was cut off meanwhile.
            self.expect(
                row.peak[2] <= row.before[1] + STREAMS + 30,
                f"{name}: at the end {row.peak[2]} file handles were held still",
            )
        expected = EXPECTED.get(name)
        if expected is not None:
            self.expect(expected(seen), f"{name}: unexpected outcomes {seen}")
        self._read_log(name)
        for outcome, count in sorted(seen.items(), key=lambda item: -item[1])[:24]:
            print(f"    {name}: {count:,} {outcome}", flush=True)

    def _read_log(self, name: str) -> None:
        """Every new line is one JSON object in plain ASCII, and tells no secret and no fault of ours."""
        with self.gateway.log.open("rb") as log:
            log.seek(self._read)
            new = log.read()
            self._read = log.tell()
        told: set[str] = set()

        def once(holds: object, fault: str, line: bytes) -> None:
            if not holds and fault not in told:
                told.add(fault)
                self.expect(holds, f"{name}: {fault}: {line[:200]!r} … {line[-700:]!r}")

        for line in new.splitlines():
            try:
                entry = msgspec.json.decode(line)
            except msgspec.DecodeError:
                entry = None
            once(isinstance(entry, dict), "a line of the log is no JSON", line)
            once(all(0x20 <= byte < 0x7F for byte in line), "a line of the log is not plain", line)
            once(len(line) < 5000, "a line of the log is long", line)
            once(b"Traceback" not in line, "the log has a traceback", line)
            once(b"forged" not in line or b"\\n" in line, "the log was forged", line)
        for secret in (*self.secrets, *self.honest.tokens):
            once(secret.encode() not in new, "the log has a secret", secret[:12].encode())

    async def _look_at_listings(self) -> None:
        """What an admin's terminal and scripts see while an ICE with a nasty hello is connected."""
        for command in (
            ("ices", "list"),
            ("ices", "show", "inject-0"),
            ("ices", "show", "inject-0", "--json"),
            ("ices", "list", "--json"),
            ("users", "list"),
            ("api-tokens", "list"),
        ):
            said = await asyncio.to_thread(self.gateway.on_a_terminal, *command)
            text = said.decode().replace("\r\n", "\n").replace("\n", "")
            self.expect(
                text.isprintable(),
                f"inject: `{' '.join(command)}` shows {[c for c in text if not c.isprintable()]}",
            )
        for path in (
            f"{API}/ices/inject-0",
            f"{API}/ices/inject-0/connections",
            f"{API}/events?limit=200",
        ):
            text = json.dumps(await self.honest.call("GET", path), ensure_ascii=False)
            self.expect(text.isprintable(), f"inject: {path} shows what is not printable")

    async def look_at_addresses(self) -> None:
        """No claimed address or host has come to be believed."""
        for path in (
            f"{API}/ices/spoof-0",
            f"{API}/ices/spoof-0/connections",
            f"{API}/ices/spoof-1/connections",
            f"{API}/events?ice_name=spoof-0",
        ):
            text = json.dumps(await self.honest.call("GET", path))
            self.expect("203.0.113" not in text, f"spoof: {path} believes a header: {text}")
            self.expect("evil" not in text, f"spoof: {path} believes a header: {text}")
        self.expect(
            b"203.0.113" not in self.gateway.log.read_bytes(), "spoof: the log believes a header"
        )


def _only(seen: dict[str, int], *allowed: str) -> bool:
    return all(outcome.startswith(allowed) for outcome in seen)


EXPECTED: dict[str, Callable[[dict[str, int]], bool]] = {
    "slow-senders": lambda seen: all(
        "No open connections left" in outcome for outcome in seen if "closed" not in outcome
    ),
    "slow-readers": lambda seen: not any("Error" in outcome for outcome in seen),
    "garbage": lambda seen: _only(seen, "4", "cut off", "gone at once", "pipelined 4", "closed"),
    "guess-logins": lambda seen: (
        seen["one address: 401"] == 5
        and seen["one address: 429"] == 95
        and _only(seen, "closed", "one address: 4", "many addresses: 4")
    ),
    "guess-tokens": lambda seen: (
        seen["registration token: 401"] == 400
        and seen["registration token: 429"] > 0
        and _only(seen, "API token: 401", "cookie: 401", "registration token: 4", "closed")
    ),
    "flood": lambda seen: (
        any("1008 too-many-frames" in outcome for outcome in seen)
        # Six were still at it when the time was up, and broke off themselves.
        and sum(count for outcome, count in seen.items() if "no close frame" in outcome) <= ROGUES
    ),
    "never-read": lambda seen: seen.get("closed 4202", 0) > 0 and _only(seen, "closed"),
    "reconnect": lambda seen: _only(seen, "admitted", "closed"),
    "spoof": lambda seen: (
        seen["login: 401"] == 5
        and seen["login: 429"] == 15
        and seen["registration token: 401"] == 100
        and seen["registration token: 429"] == 50
        and seen["ICE admitted"] == 1
        and seen["proof for another host: proof-invalid"] == 1
    ),
    "inject": lambda seen: (
        not any(": 5" in outcome for outcome in seen)
        and len([outcome for outcome in seen if outcome.startswith("closed")]) < 5
    ),
}


async def torture(gateway: Gateway, names: list[str], seconds: float) -> list[str]:
    """Play the scenarios; returns what was not as it has to be."""
    gateway.command("users", "add", "admin", "--role", "admin", "--password-stdin", given=PASSWORD)
    token = gateway.command("api-tokens", "create", "--user", "admin", "--name", "abuse")
    with gateway.running():
        honest = Honest(gateway, token)
        torture = Torture(gateway, honest, seconds)
        torture.secrets.append(token)
        for number in range(LISTED):
            await honest.provision(f"listed-{number}")
        await torture.log_in()
        works = [asyncio.create_task(honest.stay()), asyncio.create_task(honest.come())]
        await asyncio.sleep(0.5)
        honest.go_on()
        await asyncio.sleep(3)
        quiet = honest.noticed
        print(f"{HEADING}", flush=True)
        print(
            f"{'(nobody else)':<31}{len(quiet.admissions):>6}{part(quiet.admissions, 0.5):>7.1f}"
            f"{part(quiet.admissions, 0.99):>8.1f}{max(quiet.admissions) * 1000:>8.1f}{len(quiet.faults):>5}"
            f"{part(quiet.answers, 0.99):>8.1f}{part(quiet.actions, 0.99):>8.1f}",
            flush=True,
        )
        for name in names:
            lacks = attacks.missing(name)
            if lacks is not None:
                print(f"{name:<13}SKIPPED: {lacks}", flush=True)
                continue
            torture.rows.append(await torture.play(name))
            print(torture.rows[-1].line(), flush=True)
            if name == "guess-logins":
                await torture.log_in("127.0.8.8")
            if name == "spoof":
                await torture.look_at_addresses()
        for work in works:
            torture.expect(not work.done(), "the honest ICEs' own part has died")
            work.cancel()
        await honest.stays.close()
    torture.expect(gateway.stopped == 0, f"the gateway ended with {gateway.stopped}")
    torture._read_log("the end")
    print("\n" + HEADING)
    for row in torture.rows:
        print(row.line())
    return torture.failures


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(attacks.SCENARIOS))
    parser.add_argument("--seconds", type=float, default=8.0, help="of most scenarios (8)")
    options = parser.parse_args()
    names = options.names or list(attacks.SCENARIOS)
    unknown = set(names) - set(attacks.SCENARIOS)
    if unknown:
        parser.error(f"no scenario {', '.join(unknown)}; known are {', '.join(attacks.SCENARIOS)}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        failures = asyncio.run(torture(Gateway(Path(folder)), names, options.seconds))
    print(f"\n{len(names)} scenarios in {time.monotonic() - began:.0f} s, {len(failures)} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
