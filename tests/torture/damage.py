"""Flips a bit in a file, or cuts it short, and starts: it is refused in a sentence, or does no harm.

    python -m tests.torture.damage [--trials 3000] [--seed N] [--only TRIAL]

A machine is prepared with a gateway, a client and a backup, as a kill leaves them: the write-ahead log is there. Each trial damages
one file of a copy. A damaged gateway is started and met by four ICEs: one that is registered, and three that must not be admitted,
because they were deregistered, hold a token that was replaced, or have another machine's key. A damaged client is started with the
undamaged gateway. A damaged backup is restored. The refusals are those that end a command with status 1, 3 or 78 and one line; a
few trials run the commands themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import random
import re
import secrets
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from client.agent import IceClient, IceStopped
from client.credentials import IdentityProblem
from client.credentials import Key as ClientKey
from gateway.app import run_gateway
from gateway.cli.common import FATAL_ERRORS
from gateway.runtime.logs import configure
from gateway.services.backup import DATABASE, KEYS, Backup, BackupRefused
from gateway.store.key_file import KeyFileUnusable
from gateway.store.sqlite.migrate import released
from gateway.store.sqlite.snapshot import open_read_only
from tests.support.harness import harness, settings_for
from tests.support.ice import Ice, Key, Refused
from tests.support.served import command, environment

MEMORY = "/dev/shm"  # noqa: S108 - folders of its own are made there
_PATIENCE = 20.0
_SWEPT = 1.2
"""Seconds after which a gateway has copied its write-ahead log into the database."""
TARGETS = {
    "database": ("gw", "ice.db", 6),
    "log": ("gw", "ice.db-wal", 6),
    "record": ("gw", "ice.db.head", 1),
    "keys": ("gw", "ice.keys.json", 2),
    "swept database": ("swept", "ice.db", 3),
    "swept log": ("swept", "ice.db-wal", 6),
    "client's key": ("ice", "key.pem", 2),
    "client's token": ("ice", "token", 2),
    "client's state": ("ice", "state.json", 1),
    "client's journal": ("ice", "operations.db", 3),
    "client's decision": ("ice", "accepts.json", 1),
    "backup's database": ("backup", DATABASE, 2),
    "backup's keys": ("backup", KEYS, 1),
    "backup's manifest": ("backup", "manifest.json", 1),
}
"""What is damaged: the folder, the file, and how often in proportion. `swept` is `gw` after its checkpoint."""


@dataclass(frozen=True)
class Machine:
    """The prepared folder, and the ICEs of its gateway: their tokens, and their keys as PEM."""

    folder: Path
    good: tuple[str, bytes]
    gone: tuple[str, bytes]
    replaced: tuple[str, bytes]


@dataclass(frozen=True)
class Trial:
    """What one damage did: `refused`, `harmless`, `not admitted` (in a way that nobody could know better) or a fault."""

    number: int
    target: str
    damage: str
    outcome: str
    said: str = ""


async def prepare(folder: Path) -> Machine:
    """A gateway that was killed, once before and once after its checkpoint; a client; a backup."""
    run = folder / "run"
    run.mkdir()
    ices = {}
    async with harness(run) as running:
        for name in ("good", "gone", "replaced", "lab-1"):
            ices[name] = await running.provision(name, "ci-cd")
            if name != "lab-1":
                await (await ices[name].connect()).leave()

        async def execute(operation, report):
            return {"exit": 0}

        state = folder / "ice"
        async with IceClient(
            running.url,
            state_dir=state,
            token=ices["lab-1"].token,
            handlers={"remote-execute": execute},
            observe=lambda _: None,
        ) as ice:
            await ice.connected()
            ice.accept(["remote-execute"])
            for _ in range(2):
                body = {"kind": "remote-execute", "params": {}}
                await running.admin.post("/ices/lab-1/operations?wait=10", body)
        await running.command("backup", str(folder / "backup"))
        await asyncio.sleep(_SWEPT)
        await running.act("replaced", "reregister")
        await running.act("gone", "deregister")
        await running.settled()
        await running.add_user("carol")
        shutil.copytree(run, folder / "gw")
        await asyncio.sleep(_SWEPT)
        shutil.copytree(run, folder / "swept")
    return Machine(
        folder, *((ices[name].token, _pem(ices[name].key)) for name in ("good", "gone", "replaced"))
    )


class Damage:
    """Trials on copies of a machine, in one process."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self._machine = machine
        self._seed = seed

    async def trial(self, number: int) -> Trial:
        """Damage one file, and start."""
        chance = random.Random(f"{self._seed} {number}")
        target = chance.choices(list(TARGETS), [weight for *_, weight in TARGETS.values()])[0]
        place, name, _ = TARGETS[target]
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            root = Path(folder) / place
            shutil.copytree(self._machine.folder / place, root)
            damage = _damage(root / name, chance)
            try:
                async with asyncio.timeout(_PATIENCE):
                    outcome, said = await self.start(place, root)
            except Exception as error:  # noqa: BLE001 - whatever nobody expects is a fault
                where = traceback.extract_tb(error.__traceback__)[-1]
                outcome = "fault"
                said = (
                    f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
                )
        if outcome == "not admitted" and "database" not in target:
            outcome = (
                "fault"  # the database has no check sums: a flipped bit in an entry is not known
            )
        if "\n" in said.strip():
            outcome, said = "fault", f"several lines: {said}"
        return Trial(number, target, damage, outcome, said)

    async def start(self, place: str, root: Path) -> tuple[str, str]:
        """Start on a damaged copy; the outcome, and what was said."""
        if place == "ice":
            return await self._client(root)
        if place == "backup":
            return await self._backup(root)
        return await self._gateway(root)

    async def _gateway(self, root: Path) -> tuple[str, str]:
        try:
            async with run_gateway(settings_for(root), doors=2) as gateway:
                return await self._meet(gateway.url)
        except FATAL_ERRORS as error:
            return "refused", str(error)

    async def _meet(self, url: str) -> tuple[str, str]:
        machine = self._machine
        strangers = {
            "deregistered": machine.gone,
            "replaced": machine.replaced,
            "another key": (machine.good[0], _pem(Key())),
        }
        for who, (token, key) in strangers.items():
            code = await _comes(url, token, key)
            if code is None:
                return "fault", f"WRONG ADMISSION: {who}"
            if not code:
                return "fault", f"{who}: an answer without a code"
        code = await _comes(url, *machine.good)
        return ("harmless", "") if code is None else ("not admitted", code)

    async def _client(self, root: Path) -> tuple[str, str]:
        async with self._serving() as url:
            try:
                ice = IceClient(url, state_dir=root, observe=lambda _: None)
                async with ice:
                    await ice.connected()
            except IdentityProblem as problem:
                return "refused", str(problem)
            except IceStopped as stopped:
                return "refused", str(stopped.outcome)
        return "harmless", ""

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[str]:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            root = Path(folder) / "gw"
            shutil.copytree(self._machine.folder / "gw", root)
            async with run_gateway(settings_for(root), doors=2) as gateway:
                yield gateway.url

    async def _backup(self, root: Path) -> tuple[str, str]:
        target = root.parent / "extracted"
        target.mkdir()
        try:
            backup = Backup.find(root)
            backup.extract(DATABASE, target / DATABASE)
            with open_read_only(target / DATABASE) as taken:
                await backup.check(taken, released()[-1][0])
            keys = backup.extract_keys(target / KEYS)
        except (BackupRefused, KeyFileUnusable) as error:
            return "refused", str(error)
        for name in (DATABASE, KEYS):
            made = self._machine.folder / "backup" / name
            if (target / name).exists() and (target / name).read_bytes() != made.read_bytes():
                return "fault", f"a damaged {name} is taken for a good one"
        if keys is None:
            return "fault", "the keys are left out without a word"
        return "harmless", ""


def _pem(key: Key) -> bytes:
    """A key that another process can be handed."""
    return ClientKey(key.private).to_pem()


async def _comes(url: str, token: str, pem: bytes) -> str | None:
    """How an ICE is refused; None if it is admitted."""
    try:
        key = Key(serialization.load_pem_private_key(pem, None))
        connection = await Ice(url, token, key).connect()
    except Refused as refused:
        return "" if refused.status == 500 else refused.code
    await connection.close()
    return None


def _damage(path: Path, chance: random.Random) -> str:
    """Flip a bit of a file, or cut it; says what was done."""
    content = bytearray(path.read_bytes())
    if chance.random() < 0.3:
        length = chance.randrange(len(content))
        if chance.random() < 0.5:  # most damage to a file system is a whole block
            length -= length % 512
        path.write_bytes(content[:length])
        return f"cut to {length} of {len(content)}"
    # A head is short, and says the most.
    reach = 200 if chance.random() < 0.2 else len(content)
    bit = chance.randrange(min(reach, len(content)) * 8)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"bit {bit % 8} of byte {bit // 8}"


# --- in several processes ------------------------------------------------------------------------------


def _trials(job: tuple[Machine, int, list[int]]) -> list[Trial]:
    machine, seed, numbers = job
    configure("text", "critical")
    work = Damage(machine, seed)
    return [asyncio.run(work.trial(number)) for number in numbers]


def torture(machine: Machine, seed: int, numbers: list[int], workers: int = 2) -> list[Trial]:
    """Do these trials."""
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload([__name__])
    parts = [(machine, seed, numbers[start : start + 25]) for start in range(0, len(numbers), 25)]
    with ProcessPoolExecutor(workers, fork) as pool:
        return [trial for part in pool.map(_trials, parts) for trial in part]


def report(done: list[Trial], seed: int) -> str:
    """What became of each kind of file, the sentences, and the faults with how to do them again."""
    lines = []
    for target in TARGETS:
        outcomes = Counter(trial.outcome for trial in done if trial.target == target)
        lines.append(
            f"{target}: {', '.join(f'{count} {what}' for what, count in outcomes.items())}"
        )
    said = Counter(
        re.sub(r"/\S+", "PATH", trial.said)[:110] for trial in done if trial.outcome == "refused"
    )
    lines += [f"{count:5}  {sentence}" for sentence, count in said.most_common(12)]
    lines += [
        f"FAULT {trial.number} ({trial.target}, {trial.damage}): {trial.said[:300]}\n"
        f"  again: python -m tests.torture.damage --seed {seed} --only {trial.number}"
        for trial in done
        if trial.outcome == "fault"
    ]
    return "\n".join(lines)


async def status_faults(machine: Machine, done: list[Trial], seed: int, count: int) -> list[str]:
    """Run the commands on some of the damages that were refused: each ends with its status and one line."""
    wanted = [
        trial for trial in done if trial.outcome == "refused" and "backup" not in trial.target
    ]
    faults = []
    for trial in random.Random(seed).sample(wanted, min(count, len(wanted))):
        place, name, _ = TARGETS[trial.target]
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            root = Path(folder) / place
            shutil.copytree(machine.folder / place, root)
            chance = random.Random(f"{seed} {trial.number}")
            chance.choices(list(TARGETS), [weight for *_, weight in TARGETS.values()])
            _damage(root / name, chance)
            if place == "ice":
                run = [sys.executable, "-m", "client", "run", "--state-dir", str(root)]
                run += ["--gateway", "http://127.0.0.1:9"]
            else:
                run = command("serve", "--port", "0", "--database", f"sqlite:///{root}/ice.db")
            process = await asyncio.create_subprocess_exec(
                *run,
                env=environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                async with asyncio.timeout(_PATIENCE):
                    _, err = await process.communicate()
            except TimeoutError:
                process.kill()
                await process.communicate()
                if place == "ice":
                    continue  # what the gateway would have refused: there is none here
                err = b"it still runs"
            lines = err.decode().strip().splitlines()
            good = process.returncode in ((3, 1) if place == "ice" else (1, 78))
            if not good or b"Traceback" in err or len(lines) != 1:
                faults.append(f"{trial}: status {process.returncode}, {lines[-3:]}")
    return faults


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Flip bits and cut files, and start.")
    parser.add_argument("--trials", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--only", type=int, metavar="TRIAL")
    parser.add_argument(
        "--commands", type=int, default=12, help="trials for the commands themselves"
    )
    given = parser.parse_args()
    configure("text", "critical")
    began = time.monotonic()
    numbers = list(range(given.trials)) if given.only is None else [given.only]
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        machine = asyncio.run(prepare(Path(folder)))
        done = torture(machine, given.seed, numbers)
        commands = asyncio.run(status_faults(machine, done, given.seed, given.commands))
    print(report(done, given.seed))
    print("\n".join(commands) or "the commands ended with their status and one line")
    failed = sum(trial.outcome == "fault" for trial in done) + len(commands)
    print(
        f"{len(done)} trials, seed {given.seed}, {failed} failed, {time.monotonic() - began:.1f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
