"""What is measured of a server, a function a figure: each starts it anew and gives numbers by name."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from tests.bench.fleet import Fleet, copied, name_of
from tests.bench.generator import LONGEST, Generator, killed
from tests.bench.systems import (
    BOTH_CORES,
    JSON_RPC,
    SERVER_CORE,
    Running,
    System,
    free_port,
    gateway,
    gateway_command,
    started,
)
from tests.support import work
from tests.support.authority import Authority

API = "/admin/api/v1"
ECHO = "128:256:3"
DROPS = 300
DEREGISTERED = 4101
COMERS = 500
_CONCURRENT = 256
_WARM = 200
Figures = dict[str, float]


@dataclass
class Bench:
    """Where and with whom it is measured."""

    folder: Path
    generator: Generator
    fleet: Fleet
    hold: int = 30
    """Seconds for which everybody is idle: the time between two pings of an ICE."""

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def ramp(
        self, server: Running, path: str, *options: object, scheme: str = "ws"
    ) -> dict[str, Any]:
        """Connect everybody, 256 at a time; then what `options` say.

        Raises RuntimeError where somebody did not come in.
        """
        size = self.fleet.size
        result = self.generator.run(
            f"{scheme}://127.0.0.1:{server.port}{path}",
            *("--conns", size, "--conc", _CONCURRENT, "--warm", min(_WARM, size // 5)),
            *("--pid", server.process.pid, "--settle", 1500, *options),
        )
        if result["ramp"]["n"] != size - min(_WARM, size // 5):
            raise RuntimeError(f"not everybody came in: {result}")
        return result

    def ices(
        self, server: Running, *options: object, rounds: int = 1, scheme: str = "ws"
    ) -> dict[str, Any]:
        """As `ramp`, by the ICEs of the fleet; their proofs are made now, each for one handshake.

        Raises RuntimeError where one was refused, or lost its connection unasked.
        """
        headers = self.folder / "headers"
        url = f"{scheme.replace('ws', 'http')}://127.0.0.1:{server.port}/ice/v1"
        self.fleet.write_headers(headers, url, 0, self.fleet.size, rounds)
        more = ("--ready-msgs", 1, "--headers-file", headers, *options)
        result = self.ramp(server, "/ice/v1", *more, scheme=scheme)
        if result["ramp"]["bad"] or result["unexpected_gone"]:
            raise RuntimeError(f"the gateway refused or lost an ICE: {result}")
        return result

    @contextlib.contextmanager
    def registered(self, core: str = SERVER_CORE, **environment: str) -> Iterator[Running]:
        """A gateway whose ICEs are all registered (`register_all`), on a database of its own."""
        folder = copied(self.folder / "registered", self.folder / "copy")
        with gateway(folder, free_port(), self.log, core=core, **environment) as server:
            yield server

    def call(self, method: str, path: str, body: bytes = b"") -> str:
        """An API call as it goes over the wire."""
        return (
            f"{method} {API}{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: Bearer {self.fleet.api_token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body.decode()}"
        )


def _ramp_figures(result: dict[str, Any]) -> Figures:
    ramp = result["ramp"]
    return {
        "admissions_per_s": ramp["per_s"],
        "admission_cpu_us": ramp["srv_cpu_us_per"],
        "kib_per_connection": result["mem"]["kib_per_conn"],
    }


def _kick_figures(result: dict[str, Any]) -> Figures:
    kick = result["kick"]
    return {
        "drop_p50_ms": kick["close_p50_ms"],
        "drop_p99_ms": kick["close_p99_ms"],
        # Whoever saw its connection end without being told counts as missed.
        "drops_missed": DROPS - kick["closeframe_n"],
    }


def _back(result: dict[str, Any]) -> float:
    storm = result["storm"]
    if storm["all_back_s"] < 0:
        raise RuntimeError(f"not everybody came back: {storm}")
    return float(storm["all_back_s"])


def register_all(bench: Bench) -> Figures:
    """First registrations, each durable before its 101; what comes after finds them registered."""
    folder = copied(bench.fleet.folder, bench.folder / "registered")
    with gateway(folder, free_port(), bench.log) as server:
        result = bench.ices(server)
        server.process.terminate()
        server.process.wait(30)
    return {"registrations_per_s": result["ramp"]["per_s"]}


def admissions(bench: Bench) -> Figures:
    """Admissions with all checks, memory, JSON-RPC round trips."""
    with bench.registered() as server:
        result = bench.ices(server, "--echo", ECHO, *JSON_RPC)
    return {**_ramp_figures(result), "echo_per_s": result["echo"][0]["per_s"]}


def two_cores(bench: Bench) -> Figures:
    """Admissions of a gateway that may use both cores, and of one that is pinned to one of them.

    The generator uses both in either case.
    """
    shared = replace(bench, generator=bench.generator.on(BOTH_CORES))
    with bench.registered() as server:
        one = shared.ices(server)["ramp"]
    with bench.registered(core=BOTH_CORES) as server:
        both = shared.ices(server)["ramp"]
    return {
        "one_core_per_s": one["per_s"],
        "two_cores_per_s": both["per_s"],
        "two_cores_cpu_us": both["srv_cpu_us_per"],
    }


def full_house(bench: Bench, crowd: Fleet) -> Figures:
    """Resident memory with as many first registrations connected as a process has file handles for."""
    folder = copied(crowd.folder, bench.folder / "copy")
    with gateway(folder, free_port(), bench.log) as server:
        result = replace(bench, fleet=crowd).ices(server)
    return {"full_house_mib": result["mem"]["rss_kib"] / 1024}


def idle(bench: Bench) -> Figures:
    """The CPU of ICEs that do nothing but answer pings, over the whole time between two of them."""
    with bench.registered() as server:
        result = bench.ices(server, "--hold", bench.hold)
    return {"idle_cpu_percent": 100 * result["hold"]["srv_cpu"]}


def others(bench: Bench, system: System) -> Figures:
    """The same of a server that checks nothing; one connection at a time is ended by a call."""
    port = free_port()
    kick = f"POST {system.kick} HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: 0\\r\\n\\r\\n"
    drops = ("--kicks", DROPS, "--admin", f"127.0.0.1:{port}", "--admin-req", kick)
    with started((*system.command, str(port)), port, "ready", bench.log) as server:
        result = bench.ramp(
            server,
            system.path,
            *(*system.options, "--echo", ECHO, *system.echo),
            *(drops if system.kick else ()),
        )
    figures = {**_ramp_figures(result), "echo_per_s": result["echo"][0]["per_s"]}
    return {**figures, **(_kick_figures(result) if system.kick else {})}


def storm_of_others(bench: Bench, system: System) -> Figures:
    """All connections of another server break at once."""
    port = free_port()
    with started((*system.command, str(port)), port, "ready", bench.log) as server:
        result = bench.ramp(server, system.path, *system.options, "--break")
    return {"storm_s": _back(result)}


def drops(bench: Bench) -> Figures:
    """300 deregistrations by the API, one at a time, from the call to the close frame at the ICE."""
    request = bench.call("POST", "/ices/bench-{i}/deregister").replace("\r\n", "\\r\\n")
    with bench.registered() as server:
        admin = ("--admin", f"127.0.0.1:{server.port}", "--admin-req", request)
        result = bench.ices(server, "--kicks", DROPS, *admin)
    if result["kick"]["last_code"] != DEREGISTERED:
        raise RuntimeError(f"closed with another code: {result['kick']}")
    return _kick_figures(result)


def mass_drop(bench: Bench) -> Figures:
    """All ICEs deregistered by one call."""
    names = [name_of(number) for number in range(bench.fleet.size)]
    body = json.dumps({"action": "deregister", "ice_names": names}).encode()
    file = bench.folder / "bulk"
    file.write_text(bench.call("POST", "/ices/bulk", body))
    with bench.registered() as server:
        admin = ("--admin", f"127.0.0.1:{server.port}", "--kickall-file", file)
        result = bench.ices(server, *admin)["drop_all"]
    if result["dropped"] != bench.fleet.size:
        raise RuntimeError(f"not everybody was dropped: {result}")
    return {"mass_drop_s": result["last_eof_ms"] / 1000}


def storm(bench: Bench) -> Figures:
    """Every connection breaks at once, and every ICE comes back at once."""
    with bench.registered() as server:
        result = bench.ices(server, "--break", rounds=4)
    return {"storm_s": _back(result)}


def restart(bench: Bench) -> Figures:
    """The gateway is killed without warning and started again; every ICE comes back at once."""
    with bench.registered() as server:
        again = " ".join(gateway_command(bench.folder / "copy", server.port))
        script = bench.folder / "restart"
        # Its errors go elsewhere: it would hold the generator's pipe open for as long as it lives.
        script.write_text(
            f"exec 2>>{bench.log}\nkill -9 {server.process.pid}\necho $$ >{script}.pid\nexec {again}\n"
        )
        try:
            result = bench.ices(
                server, "--storm-cmd", f"exec taskset -c 0 sh {script} 2>&-", rounds=4
            )
        finally:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int(Path(f"{script}.pid").read_text()), signal.SIGKILL)
    return {"restart_s": _back(result)}


def tls_memory(bench: Bench) -> Figures:
    """Memory of an idle connection over TLS."""
    certificate, key = Authority(bench.folder).certificate("127.0.0.1")
    environment = {
        "ICE_GATEWAY_SERVER__TLS_CERTIFICATE": str(certificate),
        "ICE_GATEWAY_SERVER__TLS_KEY": str(key),
    }
    with bench.registered(**environment) as server:
        result = bench.ices(server, scheme="wss")
    return {
        "tls_admissions_per_s": result["ramp"]["per_s"],
        "tls_kib_per_connection": result["mem"]["kib_per_conn"],
    }


def steps(bench: Bench, count: int = 2_000) -> Figures:
    """What each step of an admission costs alone; see `tests.bench.steps`."""
    folder = bench.folder / "steps"
    shutil.rmtree(folder, ignore_errors=True)
    command = (sys.executable, "-m", "tests.bench.steps", str(folder), str(count))
    done = subprocess.run(
        ["taskset", "-c", SERVER_CORE, *command],
        check=True,
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )
    figures: Figures = json.loads(done.stdout)
    return figures


def operations(bench: Bench, count: int = 200) -> Figures:
    """Operations one at a time, each durable, from the request to the result at the caller."""
    with bench.registered() as server:
        times = asyncio.run(_operate(bench, server, count))
    return {"operation_p50_ms": statistics.median(times) * 1000}


async def _operate(bench: Bench, server: Running, count: int) -> list[float]:
    connection = await bench.fleet.ice(server.url, 0).connect()

    async def serve() -> None:
        while True:
            await work.finished(connection, await work.take(connection), result={})

    serving = asyncio.create_task(serve())
    url = f"{server.url}{API}/ices/{name_of(0)}/operations?wait=10"
    times = []
    authorization = {"Authorization": f"Bearer {bench.fleet.api_token}"}
    async with aiohttp.ClientSession(headers=authorization) as admin:
        for _ in range(count):
            began = time.perf_counter()
            body = {"kind": "remote-execute", "params": {"argv": ["true"]}}
            async with admin.post(url, json=body) as answer:
                operation = await answer.json()
            times.append(time.perf_counter() - began)
            assert operation.get("state") == "succeeded", f"it was to succeed: {operation}"
    serving.cancel()
    return times


def listing(bench: Bench, crowd: Fleet, seconds: float = 10.0) -> Figures:
    """Pages of a large table while as many of it as `bench` has ICEs are connected and 500 more a second come and go.

    `crowd` has 500 ICEs more than stay connected: each of them comes once a second.
    """
    connected = bench.fleet.size
    folder = copied(crowd.folder, bench.folder / "copy")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(gateway(folder, free_port(), bench.log))
        url, ice = f"ws://127.0.0.1:{server.port}/ice/v1", f"{server.url}/ice/v1"
        staying, coming = bench.folder / "headers", bench.folder / "headers-comers"
        common = ("--conc", _CONCURRENT, "--ready-msgs", 1)

        crowd.write_headers(staying, ice, 0, connected, 1)
        stay = (*common, "--headers-file", staying, "--hold", seconds + 8)
        crowded = stack.enter_context(
            killed(bench.generator.start(url, "--conns", connected, *stay))
        )
        asyncio.run(_until_connected(crowd, server, connected - 1))

        # One handshake a second and ICE, and some to spare: a proof is good once.
        crowd.write_headers(coming, ice, connected, COMERS, int(seconds) + 6)
        come = (*common, "--headers-file", coming, "--base", connected, "--warm", 0)
        rate = ("--churn", seconds + 1, "--churn-rate", COMERS)
        churn = stack.enter_context(
            killed(bench.generator.start(url, "--conns", COMERS, *come, *rate))
        )
        times = sorted(asyncio.run(_list(crowd, server, seconds)))
        came = bench.generator.finish(churn)["churn"]
        stayed = bench.generator.finish(crowded)
    if came["per_s"] < 0.95 * COMERS or came["fails"] or stayed["unexpected_gone"]:
        raise RuntimeError(f"it was to be {COMERS} admissions a second: {came}; {stayed}")
    return {
        "listing_p50_ms": 1000 * statistics.median(times),
        "listing_p99_ms": 1000 * times[int(0.99 * (len(times) - 1))],
        "listing_admissions_per_s": came["per_s"],
    }


async def _until_connected(crowd: Fleet, server: Running, number: int) -> None:
    async with asyncio.timeout(120), _admin(crowd, server) as admin:
        while True:
            async with admin.get(f"{API}/ices/{name_of(number)}") as answer:
                if (await answer.json())["connection"] is not None:
                    return
            await asyncio.sleep(0.2)


async def _list(crowd: Fleet, server: Running, seconds: float) -> list[float]:
    times = []
    async with _admin(crowd, server) as admin:
        end, cursor = time.perf_counter() + seconds, ""
        while (began := time.perf_counter()) < end:
            query = {"cursor": cursor} if cursor else {}
            async with admin.get(f"{API}/ices", params=query) as answer:
                cursor = (await answer.json())["next"] or ""
            times.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)
    return times


def _admin(fleet: Fleet, server: Running) -> aiohttp.ClientSession:
    authorization = {"Authorization": f"Bearer {fleet.api_token}"}
    return aiohttp.ClientSession(server.url, headers=authorization)
