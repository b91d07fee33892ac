"""The loop that runs `ice-client`: what handlers start neither ends it nor keeps it from ending."""

import asyncio
import os
import signal

import pytest

from tests.client.scripted_gateway import admit
from tests.support.ice import until

HANDLERS = """
import asyncio, dataclasses, multiprocessing, pathlib, signal, sys, threading

async def task(operation, report):
    async def child():
        raise (SystemExit if operation.params == "exit" else KeyboardInterrupt)(0)
    await asyncio.create_task(child())

async def callback(operation, report):
    asyncio.get_running_loop().call_soon(sys.exit)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return "goes on"

async def direct(operation, report):
    sys.exit(0)

async def thread(operation, report):
    def wait():
        pathlib.Path(operation.params).touch()
        threading.Event().wait()
    await asyncio.to_thread(wait)

async def stubborn(operation, report):
    while True:
        try:
            pathlib.Path(operation.params).touch()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

async def fork(operation, report):
    def child():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        signal.pause()
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    if operation.params == "end it":
        process.terminate()
        await asyncio.to_thread(process.join)
        return process.exitcode
    return process.pid

def register(ice, settings):
    @ice.operation("execute")
    async def execute(operation, report):
        name, params = operation.params
        return await globals()[name](dataclasses.replace(operation, params=params), report)
"""


def work(operation, name, params=None):
    """The params of `operation.run` for one of these handlers."""
    return {"id": operation, "kind": "execute", "params": [name, params]}


@pytest.fixture
async def start(gateway, fork, folder, token, tmp_path):
    """Start a process of `ice-client run` with these handlers; it, and its session."""
    (tmp_path / "mine.py").write_text(HANDLERS)
    (tmp_path / "t").write_text(token)
    run = (
        *("run", "--gateway", gateway.url, "--state-dir", folder),
        *("--token-file", tmp_path / "t", "--handlers", tmp_path / "mine.py"),
    )

    async def start():
        gateway.script.append(admit())
        process = await fork.start(*run)
        session = await gateway.session()
        await session.expect("ice.hello")
        return process, session

    return start


@pytest.fixture
async def client(start):
    return await start()


@pytest.fixture
def ended(fork):
    """Waits for the end: the status, and whether the client said that it stopped; its log may have lines behind that."""

    async def ended(process):
        end = await fork.end(process)
        return end.status, any(
            line.endswith(" stopped on request") for line in end.out.splitlines()
        )

    return ended


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_what_handlers_raise_does_not_end_the_client_and_ctrl_c_does(client, ended, number):
    process, session = client
    for at, (name, params, says) in enumerate(
        [
            ("direct", None, "SystemExit: 0"),
            ("task", "exit", "SystemExit: 0"),
            ("task", "interrupt", "KeyboardInterrupt: 0"),
            ("callback", None, None),
        ]
    ):
        run = work(f"op-{at}", name, params)
        assert "result" in await session.request("operation.run", run)
        finish = (await session.expect("operation.finish"))["params"]
        assert finish.get("error", {}).get("message") == says
        await session.send(id=run["id"], result={})
    os.kill(process, number)
    ended_well = await ended(process)
    assert ended_well == (0, True)
    assert await session.closed() == 1000


@pytest.mark.parametrize("name", ["thread", pytest.param("stubborn", marks=pytest.mark.long)])
async def test_what_does_not_end_does_not_keep_the_client(client, ended, tmp_path, name):
    process, session = client
    run = work("op-1", name, str(tmp_path / "began"))
    await session.request("operation.run", run)
    await until((tmp_path / "began").exists)
    os.kill(process, signal.SIGTERM)
    finish = await asyncio.wait_for(session.inbox.get(), 30)
    assert finish["params"]["error"]["code"] == "interrupted"
    await session.send(id=finish["id"], result={})
    ended_well = await ended(process)
    assert ended_well == (0, True)


async def finished(session, params):
    """The result of an operation that forks."""
    await session.request("operation.run", work(str(params), "fork", params))
    finish = (await session.expect("operation.finish"))["params"]
    await session.send(id=finish["id"], result={})
    assert "result" in finish, finish
    return finish["result"]


async def test_a_signal_to_a_process_that_a_handler_forked_is_not_the_clients(client, ended):
    process, session = client
    assert await finished(session, "end it") == -signal.SIGTERM, "it should end the child"
    assert "error" in await session.request("x.y", {}), "and not the client"
    os.kill(process, signal.SIGTERM)
    ended_well = await ended(process)
    assert ended_well == (0, True)


async def test_a_process_that_a_handler_forked_holds_neither_lock_nor_connection(
    client, start, ended
):
    process, session = client
    child = await finished(session, None)
    assert "error" in await session.request("x.y", {}), "it has read everything"
    try:
        os.kill(process, signal.SIGKILL)
        await session.closed()
        again, session = await start()
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
    os.kill(again, signal.SIGTERM)
    ended_well = await ended(again)
    assert ended_well == (0, True)
