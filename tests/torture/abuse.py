"""Abuse of a real gateway, while honest ICEs come and stay: `python -m tests.torture.abuse [NAME …]`.

Prints a line for each attack, and ends with 1 where an honest ICE was refused or lost, memory or file
handles were not given back, or the log holds what it should not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty

from tests.support.ice import Ice, Key
from tests.support.served import Served, serving
from tests.torture.attacks import ATTACKS, NASTY, Target

MAX_GROWTH = 150
"""MiB that an attack may cost at its worst."""
SLOW = {
    "slow headers": ("-H", "-i", "4", "-u", "{}/healthz"),
    "slow bodies": ("-B", "-i", "4", "-s", "8192", "-t", "POST", "-u", "{}/admin/login"),
    "slow reading": (
        "-X",
        "-w",
        "512",
        "-y",
        "1024",
        "-z",
        "32",
        "-k",
        "3",
        "-u",
        "{}/admin/api/v1/openapi.json",
    ),
    "ranges": ("-R", "-u", "{}/admin/static/pico.min.css"),
}


@dataclass
class Honest:
    """An ICE that stays, and others that come again and again."""

    stays: Ice
    come: list[Ice]
    admissions: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    async def keep_coming(self) -> None:
        turn = 0
        while True:
            ice = self.come[turn % len(self.come)]
            turn += 1
            begun = time.perf_counter()
            try:
                connection = await ice.connect()
                self.admissions.append(time.perf_counter() - begun)
                await connection.leave()
                await connection.close()
            except Exception as error:  # noqa: BLE001 - whatever it is, it was not to happen
                self.faults.append(f"{type(error).__name__}: {error}")
            ice.connections.clear()
            await asyncio.sleep(0.02)


def resident(pid: int) -> float:
    """MiB of a process."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def handles(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def attack(name: str, target: Target, queue: multiprocessing.Queue[Counter[str]]) -> None:
    queue.put(asyncio.run(ATTACKS[name](target)))


async def under(name: str, target: Target) -> Counter[str]:
    """Run an attack in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[Counter[str]] = context.Queue()
    process = context.Process(target=attack, args=(name, target, queue), daemon=True)
    process.start()
    while True:
        try:
            return queue.get_nowait()
        except Empty:
            if not process.is_alive() and queue.empty():
                raise RuntimeError(f"{name} died") from None
            await asyncio.sleep(0.05)


async def slowly(name: str, target: Target) -> Counter[str]:
    """Run slowhttptest with a thousand connections."""
    options = [each.format(target.url) for each in SLOW[name]]
    process = await asyncio.create_subprocess_exec(
        *("slowhttptest", "-c", "1000", "-r", "500", "-l", str(int(target.seconds)), "-p", "3"),
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return Counter(
        attempts=1000, served=out.count(b"YES"), **{"not served": out.count(b"\x1b[1;31mNO")}
    )


async def main(names: list[str], seconds: float) -> int:
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as served:
        pid = served.process.pid
        users = ("users", "add", "root", "--role", "admin", "--no-password")
        await served.run(*users)
        honest = Honest(
            await served.provision("stays"), [await served.provision(f"c-{n}") for n in range(20)]
        )
        staying = await honest.stays.connect()
        staying.patience = None
        rogues = []
        for number in range(8):
            ice = await served.provision(f"rogue-{number}")
            ice.key = Key.ed25519()
            await (await ice.connect()).close()
            rogues.append((ice.token, ice.key.private.private_bytes_raw()))
        target = Target(served.url, rogues, seconds)
        reading = asyncio.create_task(staying.expect_dropped(0))
        coming = asyncio.create_task(honest.keep_coming())
        await asyncio.sleep(2)
        print(
            f"{'attack':14}{'attempts':>9}{'honest':>8}{'p50 ms':>8}{'p99 ms':>8}{'MiB':>16}{'handles':>9}  what became of it"
        )
        faults: list[str] = []
        for name in ["calm", *names]:
            faults += await one(name, target, honest, pid)
        coming.cancel()
        if reading.done():
            faults.append(f"the honest ICE that stayed was lost: {staying.core.close_rcvd}")
        reading.cancel()
        faults += look_at_log(served)
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


async def one(name: str, target: Target, honest: Honest, pid: int) -> list[str]:
    """One attack; prints its line and returns what was not to happen."""
    before, peak, open_before = resident(pid), 0.0, handles(pid)
    honest.admissions.clear()
    if name == "calm":
        work = asyncio.create_task(asyncio.sleep(target.seconds / 2, Counter()))
    else:
        work = asyncio.create_task((slowly if name in SLOW else under)(name, target))
    while not work.done():
        peak = max(peak, resident(pid))
        await asyncio.sleep(0.05)
    counted = await work
    # What was left half-way is cut off within the time-outs; then nothing of it may remain.
    deadline = time.monotonic() + 45
    while handles(pid) > open_before + 5 and time.monotonic() < deadline:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.2)
    times = sorted(honest.admissions) or [float("nan")]
    p99 = times[int(len(times) * 0.99)]
    print(
        f"{name:14}{counted.pop('attempts', 0):9}{len(honest.admissions):8}"
        f"{statistics.median(times) * 1e3:8.1f}{p99 * 1e3:8.1f}"
        f"{before:6.0f}{peak:5.0f}{resident(pid):5.0f}{handles(pid):9}  "
        + ", ".join(f"{key}: {count}" for key, count in counted.most_common(6)),
        flush=True,
    )
    faults = [f"{name}: honest: {fault}" for fault in honest.faults]
    honest.faults.clear()
    if peak - before > MAX_GROWTH:
        faults.append(f"{name}: memory grew by {peak - before:.0f} MiB")
    if handles(pid) > open_before + 5:
        faults.append(f"{name}: {handles(pid) - open_before} file handles were not given back")
    if not honest.admissions:
        faults.append(f"{name}: no honest ICE was admitted")
    return faults


def look_at_log(served: Served) -> list[str]:
    """Every line JSON, of printable characters, without secrets or tracebacks."""
    served.stop()
    faults = []
    lines = [*served.err.end().splitlines(), *served.out.end().splitlines()[2:]]
    for line in lines:
        if line == "ice-gateway stopped" or line.startswith("there is no user yet;"):
            continue
        try:
            said = json.loads(line)
        except ValueError:
            faults.append(f"log: not JSON: {line[:200]!r}")
            continue
        if not line.isprintable() or "exception" in said:
            faults.append(f"log: {line[:200]!r}")
    text = "\n".join(lines)
    if any(secret in text for secret in served.secrets) or NASTY in text:
        faults.append("log: it holds a secret, or what was injected")
    print(f"log: {len(lines)} lines")
    return faults[:10]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*ATTACKS, *SLOW, []])
    parser.add_argument("--seconds", type=float, default=12)
    given = parser.parse_args()
    chosen = given.names or [*ATTACKS, *SLOW]
    if not shutil.which("slowhttptest"):
        print("slowhttptest is missing (Debian: apt install slowhttptest): left out")
        chosen = [name for name in chosen if name not in SLOW]
    sys.exit(asyncio.run(main(chosen, given.seconds)))
