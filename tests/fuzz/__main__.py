"""Fuzzes the targets, prints a table, and keeps what is worth it.

    python -m tests.fuzz [TARGET …] [--seconds 600] [--jobs 2]
    python -m tests.fuzz --input FILE TARGET
    python -m tests.fuzz --keep [TARGET …]

What runs leave is in `.fuzz/TARGET`: the corpus, which the next run goes on from, the log, the slowest input, and
`failed-…` if the property did not hold: the exit status is then 1. `--input` checks one file again. `--keep` copies
the few inputs that together run the most lines of the product into `tests/fuzz/seeds`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

from tests.fuzz.choice import keep
from tests.fuzz.target import SEEDS, TARGETS, Target, TooSlow, hush, load

WORK = Path(".fuzz")
MEMORY = next((one for one in (Path("/dev/shm"),) if one.is_dir()), None)  # noqa: S108 - has folders of one's own
"""Where targets write their files, if there is such a file system."""
_SLACK = 600.0
"""Seconds for a process to begin, on a busy machine; it ends by itself."""
HEAD = (
    f"{'target':16} {'executions':>11} {'seconds':>8} {'a second':>8} {'corpus':>7}"
    f" {'slowest, ms':>11} {'its bytes':>9}  property"
)


async def fuzz(name: str, seconds: int) -> str | None:
    """Fuzz a target for so many seconds, or until its property does not hold: then why."""
    target = load(name)
    work = WORK / name
    corpus, words, outcome = work / "corpus", work / "words", work / "outcome.json"
    corpus.mkdir(parents=True, exist_ok=True)
    (SEEDS / name).mkdir(parents=True, exist_ok=True)
    outcome.unlink(missing_ok=True)
    slowest = work / "slowest"
    slowest.write_bytes(b"")
    for number, example in enumerate(target.examples):
        (corpus / f"example-{number}").write_bytes(example)
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    folder = tempfile.TemporaryDirectory(dir=MEMORY)
    with folder as temporary, (work / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.fuzz.engine", name, str(seconds), str(work)),
            *(str(corpus), str(SEEDS / name)),
            *(f"-max_len={target.max_bytes}", f"-dict={words}", f"-artifact_prefix={work}/"),
            *("-timeout=30", "-rss_limit_mb=2048"),
            stdout=log,
            stderr=log,
            env=os.environ | {"TMPDIR": temporary},
        )
        try:
            async with asyncio.timeout(seconds + _SLACK):
                status = await process.wait()
        except TimeoutError:
            process.kill()
            status = await process.wait()
    if not outcome.exists():
        print(f"{name:16} ended with status {status}: see {work}/log", flush=True)
        return "ended"
    told = json.loads(outcome.read_text())
    spent, fault = await asyncio.to_thread(_judged, target, slowest.read_bytes())
    fault = told["fault"] or fault
    rate = told["executions"] / told["seconds"]
    print(
        f"{name:16} {told['executions']:11,} {told['seconds']:8.0f} {rate:8,.0f}"
        f" {len(list(corpus.iterdir())):7,} {spent * 1000:11.2f} {slowest.stat().st_size:9}  {fault or 'held'}",
        flush=True,
    )
    return fault


def _judged(target: Target, data: bytes) -> tuple[float, str | None]:
    """The CPU time in seconds that an input takes without instruments, and a fault if that is too long."""
    with contextlib.closing(target):
        try:
            return target.judge(data), None
        except TooSlow as error:
            return target.measure(data), f"{error}, without instruments"


def _escaped(word: bytes) -> str:
    return "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in word
    )


async def fuzz_all(names: list[str], seconds: int, jobs: int) -> int:
    """Fuzz some targets at a time; the exit status."""
    turns = asyncio.Semaphore(jobs)
    print(HEAD, flush=True)

    async def turn(name: str) -> str | None:
        async with turns:
            return await fuzz(name, seconds)

    return int(any(await asyncio.gather(*map(turn, names))))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--input", type=Path)
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    names = given.targets or list(TARGETS)
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        parser.error(f"there is no target {unknown[0]}; there are {', '.join(TARGETS)}")
    hush()
    if given.input is not None:
        target = load(names[0])
        with contextlib.closing(target):
            spent = target.judge(given.input.read_bytes())
        print(f"the property holds; {spent * 1000:.2f} ms")
        return 0
    if given.keep:
        for name in names:
            print(f"{name:16} {keep(name, WORK / name / 'corpus')} seeds", flush=True)
            load(name).close()
        return 0
    return asyncio.run(fuzz_all(names, given.seconds, given.jobs))


if __name__ == "__main__":
    sys.exit(main())
