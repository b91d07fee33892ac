"""An ICE that was written from docs/protocol.md alone, in another language, and the kit that judges it."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from client.conformance.report import Report
from client.conformance.runner import run, status_of
from client.conformance.sentences import CONNECTION, Sentence
from client.conformance.stage import Kit
from tests.interop.faults import FAULTS, FOLDER, SOURCE
from tests.support.work import asked, in_state

NODE = shutil.which("node")
PLACES = ("{gateway}", "{token_file}", "{state_dir}")

pytestmark = pytest.mark.skipif(
    NODE is None and os.environ.get("ICE_REQUIRE_NODE") != "1", reason="needs node"
)


async def tried(source: Path, folder: Path, chosen=CONNECTION):
    assert NODE is not None, "ICE_REQUIRE_NODE is set, and there is no node"
    kit = Kit([NODE, str(source), *PLACES], folder, report=Report(chosen))
    await run(kit, 8, lambda _: None)
    return kit


def test_it_has_200_lines():
    assert len((FOLDER / SOURCE).read_text("utf-8").splitlines()) <= 200


@pytest.mark.long
async def test_it_keeps_every_sentence(tmp_path):
    kit = await tried(FOLDER / SOURCE, tmp_path / "kit")
    assert status_of(kit) == 0, "\n".join(kit.report.lines())


@pytest.fixture
async def start():
    """Starts it; what still runs at the end is killed."""
    processes = []

    async def start(*arguments):
        assert NODE is not None, "ICE_REQUIRE_NODE is set, and there is no node"
        program = (NODE, str(FOLDER / SOURCE), *map(str, arguments))
        processes.append(
            await asyncio.create_subprocess_exec(*program, stderr=asyncio.subprocess.PIPE)
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_it_works_for_a_gateway(running, start, tmp_path):
    """It registers, works, is killed and comes back, and stops once it is deregistered."""
    ice = await running.provision()
    token = tmp_path / "lab-1.token"
    token.write_text(ice.token)
    first = await start(running.url, token, tmp_path / "ice")
    await running.eventually("/ices/lab-1", lambda answer: answer.json["connection"])
    text = "0123456789 ä€😀\n" * 9000
    params = {"conformance": "report", "message": "half", "log": text}
    worked = await asked(running.admin, params=params)
    done = await in_state(running, worked, "succeeded")
    assert (done["result"], done["progress"]["message"]) == ({}, "half")
    log = await running.admin.get(f"/operations/{worked}/log")
    assert log.body.decode() == text
    interrupted = await asked(running.admin, params={"conformance": "sleep", "seconds": 60})
    await in_state(running, interrupted, "running")
    first.kill()
    await first.communicate()
    second = await start(running.url, token, tmp_path / "ice")
    failed = await in_state(running, interrupted, "failed")
    assert failed["error"]["code"] == "interrupted"
    await running.act("lab-1", "deregister")
    _, said = await second.communicate()
    assert (second.returncode, said) == (3, b"closed 4101 deregistered: a person must act\n")


async def test_it_keeps_the_sentences_about_operations(tmp_path):
    chosen = frozenset({Sentence.FINISH, Sentence.LOG, Sentence.LARGEST_VALUE, Sentence.ID_ONCE})
    kit = await tried(FOLDER / SOURCE, tmp_path / "kit", chosen)
    assert status_of(kit) == 0, "\n".join(kit.report.lines())


ONE_AFTER_THE_OTHER = (
    (
        "const repeat = () => { if (waiting.length) send(",
        "let sent\nconst repeat = () => { if (!sent && waiting.length) send(",
    ),
    (
        "operations.get(waiting.shift()).finish) }",
        "operations.get((sent = waiting.shift())).finish) }",
    ),
    ("    waiting = [...operations]", "    sent = undefined\n    waiting = [...operations]"),
    ("    if (known) record(", "    if (id === sent) sent = undefined\n    if (known) record("),
    ("    if (known?.finish) send(known.finish)\n", ""),
    ("  send(operations.get(id).finish)\n}", "  waiting.push(id)\n  repeat()\n}"),
)
"""Changes by which it sends every finish after the answer to the one before, new ones, too."""


@pytest.mark.long
async def test_an_ice_may_wait_for_each_answer(tmp_path):
    text = (FOLDER / SOURCE).read_text("utf-8")
    for old, new in ONE_AFTER_THE_OTHER:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (tmp_path / SOURCE).write_text(text, "utf-8")
    (tmp_path / "handlers.mjs").write_bytes((FOLDER / "handlers.mjs").read_bytes())
    chosen = frozenset(one for one in Sentence if "finish" in one.value) | {
        Sentence.ID_ONCE_RESTARTED
    }
    kit = await tried(tmp_path / SOURCE, tmp_path / "kit", chosen & CONNECTION)
    assert status_of(kit) == 0, "\n".join(kit.report.lines())


QUICK = ("a known id is run again",)
"""A fault that is named without waiting for what does not come."""


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(QUICK, id="quick"),
        *(
            pytest.param(tuple(FAULTS)[at::8], id=f"{at}", marks=pytest.mark.long)
            for at in range(8)
        ),
    ],
)
async def test_each_fault_is_named(names, tmp_path):
    """By the sentences that it breaks, and no others."""

    async def judge(name, folder):
        folder.mkdir()
        fault = FAULTS[name]
        source = fault.write(folder)
        kit = await tried(source, folder / "kit", fault.breaks)
        kit.report.chosen = frozenset(Sentence)
        return {*kit.report.failed()}, "\n".join([name, *kit.report.lines()])

    places = [tmp_path / str(number) for number, _ in enumerate(names)]
    found = await asyncio.gather(*map(judge, names, places))
    for name, (failed, told) in zip(names, found, strict=True):
        assert FAULTS[name].breaks <= failed <= FAULTS[name].breaks | FAULTS[name].also, told


def test_each_sentence_is_broken_by_a_fault():
    assert frozenset().union(*(fault.breaks for fault in FAULTS.values())) == CONNECTION
