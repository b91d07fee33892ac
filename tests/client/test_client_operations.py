"""The operations that the gateway sends to an ICE: contract section 6."""

import asyncio
import contextlib
import shutil
import sqlite3

import pytest

from client import protocol
from client.backoff import ClosedByUs
from client.credentials import IdentityProblem
from client.environment import Waits
from client.identity import FolderUnusable
from client.journal import KEPT, Journal
from client.operations import OperationFailed
from tests.client.scripted_gateway import NOW, admit

RUN = {"id": "op-1", "kind": "execute", "params": {"n": 2}, "deadline": "2026-11-23T00:00:00Z"}


UNANSWERED = Waits(answers=0.0)
"""A client that stops does not wait: nobody answers at the end of a test."""


@pytest.fixture
def databases(monkeypatch):
    """The databases that are opened; the last is the journal of the ICE that was made last."""
    opened, connect = [], sqlite3.connect

    def recorded(*args, **options):
        opened.append(connect(*args, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", recorded)
    return opened


@pytest.fixture
async def talk(gateway, make_ice):
    """Connect an ICE with these handlers; the ICE and the gateway's end of its session."""
    ices = []

    async def connect(waits=UNANSWERED, **handlers):
        gateway.script.extend([admit(), admit(), admit()])
        ice = make_ice(handlers=handlers, waits=waits)
        ices.append(await ice.__aenter__())
        session = await gateway.session()
        await session.expect("ice.hello")
        return ice, session

    yield connect
    for ice in ices:
        await ice.__aexit__(None, None, None)


async def reconnected(gateway, session):
    """Close a session; the next one and its hello."""
    await session.socket.close(code=4201)
    session = await gateway.session()
    hello = await session.expect("ice.hello")
    return session, hello["params"].get("running", [])


async def test_an_operation_is_accepted_run_and_finished(talk):
    async def execute(operation, report):
        await report(0.5, "half way", data={"n": 1})
        return {"double": operation.params["n"] * 2, "until": operation.deadline}

    _, session = await talk(execute=execute)
    answer = await session.request("operation.run", RUN)
    assert answer["result"] == {"accepted": True}
    progress = await session.expect("operation.progress")
    assert progress["params"] == {
        "id": "op-1",
        "fraction": 0.5,
        "message": "half way",
        "data": {"n": 1},
    }
    assert "id" not in progress, "progress is a notification"
    finish = await session.expect("operation.finish")
    assert finish["params"] == {
        "id": "op-1",
        "outcome": "succeeded",
        "result": {"double": 4, "until": RUN["deadline"]},
    }
    assert "id" in finish, "finish is a request"


async def test_a_handler_may_be_registered_by_decorator(talk):
    ice, session = await talk()

    @ice.operation(protocol.OperationKind.EXECUTE)
    async def execute(operation, report):
        return "done"

    await session.request("operation.run", RUN)
    assert (await session.expect("operation.finish"))["params"]["result"] == "done"


async def test_a_kind_without_a_handler_is_not_found(talk):
    _, session = await talk()
    answer = await session.request("operation.run", RUN)

    assert answer["error"]["code"] == -32601
    assert "execute" in answer["error"]["message"]


@pytest.mark.parametrize("params", [{}, {"id": 5, "kind": "execute"}, {"id": "x"}, ["op-1"]])
async def test_bad_params_are_answered(params, talk):
    _, session = await talk()
    answer = await session.request("operation.run", params)

    assert answer["error"]["code"] == -32602


async def test_unknown_requests_are_answered_and_unknown_notifications_are_not(talk):
    _, session = await talk()
    await session.send(method="ice.dance", params={})
    await session.send(method="operation.run", params=RUN)
    answer = await session.request("ice.dance", {})

    assert answer["error"]["code"] == -32601


async def test_an_operation_is_not_run_twice(talk):
    runs, go = [], asyncio.Event()

    async def execute(operation, report):
        runs.append(operation.id)
        await go.wait()

    _, session = await talk(execute=execute)
    for _ in range(2):
        answer = await session.request("operation.run", RUN)
        assert answer["result"] == {"accepted": True}
    go.set()
    finish = await session.expect("operation.finish")
    answer = await session.request("operation.run", RUN)
    assert answer["result"] == {"accepted": True}
    again = await session.expect("operation.finish")
    assert again == finish, "a finished operation should be finished again, not run again"
    await session.send(id=finish["id"], result={})
    answer = await session.request("operation.run", RUN)
    assert answer["result"] == {"accepted": True}
    assert "error" in await session.request("x.y", {}), "the gateway knows what it came to"
    assert runs == ["op-1"]


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_cancelled_operation_fails(at_once, talk):
    began = asyncio.Event()

    async def execute(operation, report):
        began.set()
        await asyncio.Event().wait()

    _, session = await talk(execute=execute)
    if at_once:
        await session.send(method="operation.run", params=RUN, id=1)
        await session.send(method="operation.cancel", params={"id": "op-1"})
        await session.receive()
    else:
        await session.request("operation.run", RUN)
        await began.wait()
        await session.send(method="operation.cancel", params={"id": "op-1"})
    finish = await session.expect("operation.finish")

    assert finish["params"]["outcome"] == "failed"
    assert finish["params"]["error"]["code"] == "cancelled"


@pytest.mark.parametrize(
    ("reason", "code", "says"),
    [
        ("requested", "cancelled", "on request"),
        (None, "cancelled", "on request"),  # an older gateway
        ("deadline", "deadline", "deadline"),
        ("reregistered", "reregistered", "was reregistered"),
        ("unknown", "unknown", "no longer waits"),
        ("new-reason", "cancelled", "new-reason"),
    ],
)
async def test_a_handler_and_the_gateway_are_told_why_it_was_cancelled(reason, code, says, talk):
    began, told = asyncio.Event(), []

    async def execute(operation, report):
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            told.append(str(error))
            raise

    _, session = await talk(execute=execute)
    await session.request("operation.run", RUN)
    await began.wait()
    given = {} if reason is None else {"reason": reason}
    await session.send(method="operation.cancel", params={"id": "op-1", **given})
    error = (await session.expect("operation.finish"))["params"]["error"]
    assert error["code"] == code
    assert says in error["message"]
    assert told == [error["message"]]


@pytest.mark.parametrize("outcome", ["another error", "a result"])
async def test_the_reason_is_told_whatever_a_handler_makes_of_its_cancellation(
    outcome, talk, caplog
):
    caplog.set_level("INFO", "client.operations")
    began = asyncio.Event()

    async def execute(operation, report):
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if outcome == "a result":
                return "late, but true"
            raise OperationFailed("cancelled", "cancelled on request") from None

    _, session = await talk(execute=execute)
    await session.request("operation.run", RUN)
    await began.wait()
    await session.send(method="operation.cancel", params={"id": "op-1", "reason": "deadline"})
    finish = (await session.expect("operation.finish"))["params"]
    if outcome == "a result":
        assert finish["result"] == "late, but true"
    else:
        assert finish["error"] == {"code": "deadline", "message": "its deadline has passed"}
    assert "operation op-1 is cancelled: its deadline has passed" in caplog.text
    assert "on request" not in caplog.text


async def test_what_had_failed_before_its_cancellation_says_why_itself(talk):
    failed = asyncio.Event()

    async def execute(operation, report):
        failed.set()
        raise OperationFailed("no-disk", "full")

    ice, session = await talk(execute=execute)
    await session.send(method="operation.run", params=RUN, id=1)
    await failed.wait()
    ice._operations.cancel("op-1", "deadline")  # before anybody has looked at how it ended
    messages = [await session.receive() for _ in range(2)]
    [finish] = [message["params"] for message in messages if "params" in message]
    assert finish["error"] == {"code": "no-disk", "message": "full"}


@pytest.mark.parametrize("code", [4101, 4102])
async def test_what_runs_ends_when_the_registration_does(code, talk):
    began, ended = asyncio.Event(), asyncio.Event()

    async def execute(operation, report):
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    ice, session = await talk(execute=execute)
    await session.request("operation.run", RUN)
    await began.wait()
    await session.socket.close(code=code)
    await ice.wait()
    assert ended.is_set()


async def test_cancelling_what_is_unknown_or_finished_does_nothing(talk):
    async def execute(operation, report):
        return 1

    _, session = await talk(execute=execute)
    await session.send(method="operation.cancel", params={"id": "nobody"})
    await session.request("operation.run", RUN)
    await session.expect("operation.finish")
    await session.send(method="operation.cancel", params={"id": "op-1"})
    answer = await session.request("x.y", {})

    assert "error" in answer, "nothing but this answer should have been sent"


async def _raises(operation, report):
    raise KeyError("no such\udce9 thing")


async def _unencodable(operation, report):
    return object()


async def _too_large(operation, report):
    return "x" * protocol.MAX_VALUE


async def _bad_fraction(operation, report):
    await report(1.5)


async def _huge_progress(operation, report):
    await report(data="x" * protocol.MAX_MESSAGE)


class _Unspeakable(Exception):
    def __str__(self):
        raise SystemExit("not even this")


class _WithoutCode(OperationFailed):
    def __init__(self):
        pass


class _UnspeakableFailure(OperationFailed):
    code = _Unspeakable()

    def __init__(self):
        pass

    def __str__(self):
        raise KeyboardInterrupt


async def _fails_a_test(operation, report):
    pytest.fail("as a test would")


async def _exits_pytest(operation, report):
    pytest.exit("as a plugin would")


async def _is_no_coroutine(operation, report):
    return await 5


async def _in_a_task(operation, report):
    async def child():
        raise ValueError("in a task of its own")

    async with asyncio.TaskGroup() as group:
        group.create_task(child())


async def _names_progress_wrongly(operation, report):
    await report(message=5)


async def _lone_surrogate(operation, report):
    return "\udce9"


async def _deep_progress(operation, report):
    await report(data=nested(101))


async def _unending_progress(operation, report):
    await report(data=[float("inf")])


def returning(value):
    async def handler(operation, report):
        return value

    return handler


def raising(error):
    async def handler(operation, report):
        raise error

    return handler


def nested(levels):
    """Lists in lists, so many of them."""
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("handler", "code", "says"),
    [
        (_raises, "failed", "KeyError: "),
        (_unencodable, "invalid", "TypeError"),
        (_too_large, "too-large", "1,000,000 bytes"),
        (_bad_fraction, "failed", "fraction"),
        (_huge_progress, "failed", "exceeds the size"),
        (_lone_surrogate, "invalid", "Unicode"),
        (returning(float("nan")), "invalid", "not JSON compliant"),
        (returning({"a": [float("-inf")]}), "invalid", "not JSON compliant"),
        (returning(nested(101)), "invalid", "100 levels"),
        (returning(nested(5000)), "invalid", "too deep"),
        (returning(10**30), "invalid", "30 digits"),
        (returning({1, 2}.__iter__()), "invalid", "TypeError"),
        (raising(SystemExit()), "failed", "SystemExit"),
        (raising(SystemExit(0)), "failed", "SystemExit: 0"),
        (raising(SystemExit({"odd": [1]})), "failed", "SystemExit: {'odd': [1]}"),
        (raising(KeyboardInterrupt()), "failed", "KeyboardInterrupt"),
        (raising(GeneratorExit()), "failed", "GeneratorExit"),
        (raising(StopIteration(5)), "failed", "RuntimeError"),
        (raising(BaseException("bare")), "failed", "BaseException: bare"),
        (raising(BaseExceptionGroup("both", [SystemExit(1)])), "failed", "both"),
        (raising(_Unspeakable()), "failed", "_Unspeakable"),
        (raising(OperationFailed("no-\udce9", "no \udce9")), "no-", "no ?"),
        (raising(OperationFailed(404, KeyError)), "404", "KeyError"),
        (raising(OperationFailed(" \n", "empty")), "failed", "empty"),
        (raising(OperationFailed("x" * 5000, "long")), "x" * 100, "long"),
        (raising(_WithoutCode()), "failed", ""),
        (raising(_UnspeakableFailure()), "failed", ""),
        (_fails_a_test, "failed", "Failed: as a test would"),
        (_exits_pytest, "failed", "Exit: as a plugin would"),
        (_is_no_coroutine, "failed", "TypeError"),
        (_in_a_task, "failed", "ExceptionGroup"),
        (_names_progress_wrongly, "failed", "message"),
        (_deep_progress, "failed", "100 levels"),
        (_unending_progress, "failed", "not JSON compliant"),
    ],
)
async def test_what_goes_wrong_in_a_handler_fails_its_operation(handler, code, says, talk):
    _, session = await talk(execute=handler)
    await session.request("operation.run", RUN)
    finish = await session.expect("operation.finish")

    assert finish["params"]["outcome"] == "failed"
    assert finish["params"]["error"]["code"] == code
    assert says in finish["params"]["error"]["message"]
    assert "error" in await session.request("x.y", {}), "the connection should have survived"


async def test_a_handler_that_ignores_its_cancellation_is_given_up(talk, events, gateway):
    began, go, calls = asyncio.Event(), asyncio.Event(), []

    async def execute(operation, report):
        calls.append(operation.id)
        while not go.is_set():
            began.set()
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()
        return "too late"

    _, session = await talk(Waits(grace=0.0, answers=0.0), execute=execute)
    await session.request("operation.run", RUN)
    await began.wait()
    await session.send(method="operation.cancel", params={"id": "op-1", "reason": "deadline"})
    finish = await session.expect("operation.finish")
    assert finish["params"]["error"]["code"] == "deadline"
    session, running = await reconnected(gateway, session)
    assert running == []
    finish = await session.expect("operation.finish")
    [warning] = [str(event) for event in events if event.kind == "warning"]
    assert "op-1" in warning
    assert "still runs" in warning
    await session.send(id=finish["id"], result={})
    go.set()
    assert (await session.request("operation.run", RUN | {"id": "op-2"}))["result"]
    finish = await session.expect("operation.finish")
    assert (finish["params"]["id"], calls) == ("op-2", ["op-1", "op-2"]), "it is finished once"


async def test_json_within_its_bounds_passes_both_ways(talk):
    async def execute(operation, report):
        await report(data=operation.params)
        return operation.params

    _, session = await talk(execute=execute)
    value = [nested(99), 10**30 - 1]
    assert "result" in await session.request("operation.run", RUN | {"params": value})
    assert (await session.expect("operation.progress"))["params"]["data"] == value
    assert (await session.expect("operation.finish"))["params"]["result"] == value


@pytest.mark.parametrize(
    "value", ["[" * 101 + "]" * 101, "[" * 3000 + "]" * 3000, "1e999", "1" * 31]
)
async def test_a_run_beyond_the_bounds_is_refused_and_the_client_stays(value, talk):
    runs = []

    async def execute(operation, report):
        runs.append(operation.id)

    _, session = await talk(execute=execute)
    params = '{"id":"op-1","kind":"execute","params":' + value + "}"
    text = '{"jsonrpc":"2.0","method":"operation.run","id":"op-1","params":' + params + "}"
    await session.socket.send_str(text)
    answer = await session.receive()
    assert (answer["id"], answer["error"]["code"]) == ("op-1", -32602)
    assert (await session.request("operation.run", RUN))["result"] == {"accepted": True}
    await session.expect("operation.finish")
    assert runs == ["op-1"]


async def test_another_message_beyond_the_bounds_ends_the_session(talk):
    _, session = await talk()
    params = "[" * 200 + "]" * 200
    await session.socket.send_str('{"jsonrpc":"2.0","method":"ice.dance","params":' + params + "}")
    assert await session.closed() == 1008


async def test_a_finish_is_repeated_until_it_is_answered(talk, gateway):
    async def execute(operation, report):
        return 1

    _, session = await talk(execute=execute)
    await session.request("operation.run", RUN)
    finish = await session.expect("operation.finish")
    session, running = await reconnected(gateway, session)
    assert running == [], "it is not worked on any more"
    assert await session.expect("operation.finish") == finish, "unanswered: it should come again"
    await session.send(id=finish["id"], result={})
    assert "error" in await session.request("x.y", {})
    session, _ = await reconnected(gateway, session)

    assert "error" in await session.request("x.y", {}), "answered: it should not come again"


async def test_an_error_is_an_answer_too(talk, gateway):
    async def execute(operation, report):
        return 1

    _, session = await talk(execute=execute)
    await session.request("operation.run", RUN)
    finish = await session.expect("operation.finish")
    await session.send(id=finish["id"], error={"code": -32601, "message": "unknown"})
    session, _ = await reconnected(gateway, session)

    assert "error" in await session.request("x.y", {}), "a gateway that refuses it has heard it"


async def test_an_operation_outlives_its_connection(talk, gateway):
    go = asyncio.Event()

    async def execute(operation, report):
        await go.wait()
        return 7

    _, session = await talk(execute=execute)
    await session.request("operation.run", RUN)
    session, running = await reconnected(gateway, session)
    assert running == ["op-1"], "hello should name what is still worked on"
    go.set()

    assert (await session.expect("operation.finish"))["params"]["result"] == 7


async def test_what_finishes_between_two_connections_is_told_on_the_next(talk, gateway, time):
    go, finished = asyncio.Event(), asyncio.Event()

    async def execute(operation, report):
        await go.wait()
        await report(0.9)  # lost: there is no connection
        finished.set()
        return 7

    async def sleep(seconds):
        go.set()
        await finished.wait()

    time.sleep = sleep
    _, session = await talk(execute=execute)
    await session.request("operation.run", RUN)
    session, _ = await reconnected(gateway, session)

    assert (await session.expect("operation.finish"))["params"]["result"] == 7


async def test_leaving_cancels_what_is_worked_on(talk):
    cancelled = asyncio.Event()

    async def execute(operation, report):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    ice, session = await talk(Waits(), execute=execute)
    await session.request("operation.run", RUN)
    ice.stop()
    await session.expect("operation.finish")
    await session.send(id=RUN["id"], result={})
    await ice.wait()

    assert cancelled.is_set()
    assert await session.closed() == 1000


async def test_a_client_that_is_stopped_first_finishes_what_runs_as_interrupted(talk, folder):
    told = []

    async def execute(operation, report):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            told.append(str(error))
            return "a result that is only half of it"

    ice, session = await talk(Waits(), execute=execute)
    for name in ("op-1", "op-2"):
        await session.request("operation.run", RUN | {"id": name})
    ice.stop()
    finishes = [(await session.expect("operation.finish"))["params"] for _ in range(2)]
    late = {"jsonrpc": "2.0", "method": "operation.run", "params": RUN | {"id": "op-3"}}
    await session.send(**late, id="op-3")
    answer = await session.receive()
    for finish in finishes:
        assert not session.ended.done(), "it should wait for the answer"
        await session.send(id=finish["id"], result={})
    assert await ice.wait() == ClosedByUs()
    assert await session.closed() == 1000
    assert [finish["id"] for finish in finishes] == ["op-1", "op-2"]
    assert {finish["outcome"] for finish in finishes} == {"failed"}
    assert {finish["error"]["code"] for finish in finishes} == {"interrupted"}
    assert told == [finish["error"]["message"] for finish in finishes]
    refusal = {"code": -32603, "message": "this ICE is stopping"}
    assert answer == {"jsonrpc": "2.0", "error": refusal, "id": "op-3"}, "else it would be lost"
    journal = Journal(folder / "operations.db", lambda: NOW)
    assert (journal.unanswered(), journal.interrupted()) == ([], []), "all is answered"
    assert journal.accept("op-3"), "it is new"
    journal.close()


async def test_a_stop_that_is_not_answered_is_told_at_the_next_start(talk, gateway, make_ice):
    async def execute(operation, report):
        await asyncio.Event().wait()

    ice, session = await talk(execute=execute)
    await session.request("operation.run", RUN)
    await ice.__aexit__(None, None, None)
    assert await session.closed() == 1000
    async with make_ice():
        session = await gateway.session()
        await session.expect("ice.hello")
        finish = await session.expect("operation.finish")
        assert finish["params"]["error"]["code"] == "interrupted"
        await session.send(id=finish["id"], result={})
        assert "error" in await session.request("x.y", {})


async def test_it_is_journaled_before_the_handlers_end(talk, crash):
    stopping, go = asyncio.Event(), asyncio.Event()

    async def execute(operation, report):
        try:
            await asyncio.Event().wait()
        finally:
            stopping.set()
            await go.wait()

    ice, session = await talk(Waits(), execute=execute)
    await session.request("operation.run", RUN)
    ice.stop()
    await stopping.wait()
    later = await crash()
    error = (await later.expect("operation.finish"))["params"]["error"]
    assert error == {
        "code": "interrupted",
        "message": "the ICE was stopped while it worked on this",
    }
    go.set()
    finish = await session.expect("operation.finish")
    await session.send(id=finish["id"], result={})
    await ice.wait()


# --- across restarts ---------------------------------------------------------------------------


@pytest.fixture
async def crash(folder, tmp_path, gateway, make_ice):
    """What a client that is killed now leaves behind, and another that starts from there."""
    started = []

    async def crash(**handlers):
        left = tmp_path / f"left-{len(started)}"
        shutil.copytree(folder, left)
        gateway.script.extend([admit(), admit()])
        ice = make_ice(state_dir=left, handlers=handlers)
        started.append(await ice.__aenter__())
        session = await gateway.session()
        hello = await session.expect("ice.hello")
        assert hello["params"].get("running", []) == [], "it works on nothing yet"
        return session

    yield crash
    for ice in started:
        await ice.__aexit__(None, None, None)


async def test_what_was_worked_on_at_a_crash_has_failed_and_is_not_run_again(talk, crash):
    runs = []

    async def execute(operation, report):
        runs.append(operation.id)
        await asyncio.Event().wait()

    _, session = await talk(execute=execute)
    await session.request("operation.run", RUN)
    session = await crash(execute=execute)
    finish = await session.expect("operation.finish")
    assert finish["params"]["id"] == "op-1"
    assert finish["params"]["error"]["code"] == "interrupted"
    answer = await session.request("operation.run", RUN)
    assert answer["result"] == {"accepted": True}
    assert await session.expect("operation.finish") == finish
    assert runs == ["op-1"], "it was to be run once"


async def test_a_result_outlives_a_crash_until_it_is_answered(talk, crash):
    async def execute(operation, report):
        return {"n": operation.id}

    _, session = await talk(execute=execute)
    finishes = []
    for name in ("op-1", "op-2", "op-3"):
        await session.request("operation.run", RUN | {"id": name})
        finishes.append(await session.expect("operation.finish"))
    session = await crash()
    # One after the other: a gateway takes so many at once and no more.
    for finish in finishes:
        assert await session.expect("operation.finish") == finish
        await session.send(id=finish["id"], result={})
    assert "error" in await session.request("x.y", {})


async def test_an_answered_operation_is_remembered_after_a_restart(talk, folder, gateway, make_ice):
    runs = []

    async def execute(operation, report):
        runs.append(operation.id)

    ice, session = await talk(execute=execute)
    await session.request("operation.run", RUN)
    finish = await session.expect("operation.finish")
    await session.send(id=finish["id"], result={})
    assert "error" in await session.request("x.y", {})
    ice.stop()
    await ice.__aexit__(None, None, None)
    async with make_ice(handlers={"execute": execute}):
        session = await gateway.session()
        await session.expect("ice.hello")
        assert (await session.request("operation.run", RUN))["result"] == {"accepted": True}
        assert "error" in await session.request("x.y", {}), "nothing is to be said of it"
    assert runs == ["op-1"]


def test_a_journal_forgets_after_a_while_what_was_answered(tmp_path):
    now = [1000.0]
    journal = Journal(tmp_path / "j.db", lambda: now[0])
    for name in ("answered", "finished", "accepted"):
        assert journal.accept(name)
        assert not journal.accept(name), "only once"
    journal.finish("finished", b"1")
    journal.finish("answered", b"2")
    journal.answered("answered")
    journal.close()
    now[0] += KEPT + 1
    journal = Journal(tmp_path / "j.db", lambda: now[0])
    assert (journal.unanswered(), journal.interrupted()) == (["finished"], ["accepted"])
    assert journal.accept("answered"), "it is forgotten"
    journal.close()
    assert (tmp_path / "j.db").stat().st_mode & 0o777 == 0o600


async def test_what_cannot_be_remembered_is_not_run(databases, talk, events):
    runs = []

    async def execute(operation, report):
        runs.append(operation.id)

    _, session = await talk(execute=execute)
    databases[-1].execute("PRAGMA query_only=ON")  # as on a full disk
    answer = await session.request("operation.run", RUN)
    assert answer["error"]["code"] == -32603
    assert "cannot be used" in answer["error"]["message"]
    assert runs == []
    assert any(event.kind == "warning" and "journal" in str(event) for event in events)


async def test_a_result_that_cannot_be_written_is_told_all_the_same(databases, talk, gateway):
    go = asyncio.Event()

    async def execute(operation, report):
        await go.wait()
        return 1

    _, session = await talk(execute=execute)
    await session.request("operation.run", RUN)
    databases[-1].execute("PRAGMA query_only=ON")
    go.set()
    finish = await session.expect("operation.finish")
    session, _ = await reconnected(gateway, session)
    assert await session.expect("operation.finish") == finish
    await session.send(id=finish["id"], result={})
    assert "error" in await session.request("x.y", {})


def a_journal(path):
    journal = Journal(path, lambda: NOW)
    for number in range(10):
        journal.accept(f"op-{number}")
        journal.finish(f"op-{number}", b"x" * 3000)
    journal.close()
    return path.read_bytes()


def no_database(path):
    path.write_bytes(b"x" * 5000)


def half_a_journal(path):
    whole = a_journal(path)
    path.write_bytes(whole[: len(whole) // 2])


def a_journal_with_a_hole(path):
    whole = a_journal(path)
    path.write_bytes(whole[:9000] + bytes(4000) + whole[13_000:])


def a_journal_with_a_name_that_is_no_text(path):
    damaged = a_journal(path).replace(b"tableoperations", b"tableoper\xf4tions")
    path.write_bytes(damaged.replace(b"CREATE TABLE", b"CREATE TABEL"))


def another_table(path):
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE operations (id TEXT PRIMARY KEY)")


@pytest.mark.parametrize(
    "damage",
    [
        *(no_database, half_a_journal, a_journal_with_a_hole, another_table),
        a_journal_with_a_name_that_is_no_text,
    ],
)
async def test_a_damaged_journal_is_for_a_person_to_move_away(damage, folder, make_ice):
    folder.mkdir(mode=0o700)
    path = folder / "operations.db"
    damage(path)
    before = path.read_bytes()
    with pytest.raises(IdentityProblem) as refused:
        await make_ice().__aenter__()
    assert not isinstance(refused.value, FolderUnusable), "starting again would not help"
    said = str(refused.value)
    assert f"{path} is damaged (" in said
    assert "move it away" in said
    assert "are lost with it" in said
    assert "\n" not in said
    assert path.read_bytes() == before, "it is evidence, and may be mended"
    path.unlink()
    async with make_ice():
        pass  # the folder was given back


async def test_an_empty_journal_has_lost_nothing_and_is_made_anew(folder, make_ice):
    folder.mkdir(mode=0o700)
    (folder / "operations.db").touch()
    async with make_ice() as ice:
        await ice.connected()


@pytest.mark.parametrize("name", ["SQLITE_FULL", "SQLITE_IOERR_READ"])
async def test_a_disk_that_fails_is_no_damage(name, folder, make_ice, monkeypatch):
    def connect(*args, **options):
        error = sqlite3.OperationalError("the disk")
        error.sqlite_errorname = name
        raise error

    monkeypatch.setattr(sqlite3, "connect", connect)
    with pytest.raises(FolderUnusable, match="cannot be used: the disk"):
        await make_ice().__aenter__()


async def test_a_refused_finish_is_told_to_the_person_and_forgotten(talk, events):
    async def execute(operation, report):
        return 1

    _, session = await talk(execute=execute)
    await session.request("operation.run", RUN)
    finish = await session.expect("operation.finish")
    await session.send(id=finish["id"], error={"code": -32002, "message": "It was \x1b cancelled"})
    assert "error" in await session.request("x.y", {})
    [warning] = [str(event) for event in events if event.kind == "warning" and "op-1" in str(event)]
    assert warning.startswith("the gateway refused the finish of operation op-1: It was ")
    assert "\x1b" not in warning


async def test_a_handler_fails_with_a_code_of_its_own(talk, caplog):
    async def execute(operation, report):
        raise OperationFailed("no-such-suite", "there is no suite smoke")

    _, session = await talk(execute=execute)
    await session.request("operation.run", RUN)
    error = (await session.expect("operation.finish"))["params"]["error"]
    assert error == {"code": "no-such-suite", "message": "there is no suite smoke"}
    assert "Traceback" not in caplog.text


async def test_nobody_is_warned_of_what_the_gateway_itself_has_cancelled(talk, events):
    async def execute(operation, report):
        await asyncio.Event().wait()

    _, session = await talk(execute=execute)
    await session.request("operation.run", RUN)
    await session.send(method="operation.cancel", params={"id": "op-1"})
    finish = await session.expect("operation.finish")
    await session.send(id=finish["id"], error={"code": -32002, "message": "It has ended."})
    assert "error" in await session.request("x.y", {})
    assert not [event for event in events if event.kind == "warning" and "op-1" in str(event)]
