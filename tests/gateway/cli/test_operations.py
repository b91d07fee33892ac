"""`ice-gateway operations`: on the table, beside a running gateway and without one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import sys
from datetime import timedelta

import pytest
import pytest_asyncio

from gateway.admin.event_streams import StreamLimits
from gateway.app import Tuning
from gateway.core.times import to_text, utc_now
from tests.support.forks import environment
from tests.support.harness import harness
from tests.support.ice import until
from tests.support.work import (
    UNREADABLE,
    connected,
    expect_cancel,
    finished,
    in_state,
    log,
    progress,
    stored,
    take,
)

ID = re.compile(r"[0-9a-f]{24}\n")
RUN = ("operations", "run", "lab-1", "--kind", "execute")


def soon(seconds: float) -> str:
    return to_text(utc_now() + timedelta(seconds=seconds))


async def shown(running, operation: str):
    return json.loads((await running.command("operations", "show", operation, "--json")).stdout)


async def one_id(running, *args: str) -> str:
    """The command must print an id and nothing else on stdout."""
    made = await running.command(*RUN, *args)
    assert ID.fullmatch(made.stdout), f"expected the id alone, got {made.stdout!r}"
    return made.stdout.strip()


async def waits(folder, *args: str) -> str:
    """Request an operation for a registered ICE while a gateway runs; its id. None runs afterwards."""
    async with harness(folder) as running:
        await (await connected(running)).close()
        return await one_id(running, *args)


@pytest.fixture
def alone(fork, tmp_path):
    """Runs commands as processes, with no gateway on the database."""

    async def run(*args: str, **how):
        return await fork.run(*args, *database(tmp_path), **how)

    return run


def database(folder) -> tuple[str, str]:
    return "--database", f"sqlite:///{folder}/ice.db"


# --- requested ---------------------------------------------------------------------------------


async def test_an_operation_is_requested_sent_and_shown(running):
    ice = await connected(running)
    operation = await one_id(running, "--params", '{"suite": "smoke"}')
    assert await take(ice) == operation
    progress(ice, operation, fraction=0.5, message="half\u001b[31m way")
    await in_state(running, operation, "running")
    await running.eventually(f"/operations/{operation}", lambda answer: answer.json["progress"])
    lines = (await running.command("operations", "show", operation)).stdout
    assert re.search(r"^state +running$", lines, re.MULTILINE), lines
    assert "\x1b" not in lines, "what an ICE says must not steer a terminal"
    await finished(ice, operation, result={"exit": 0})

    document = await shown(running, operation)
    assert document == (await running.admin.get(f"/operations/{operation}")).json
    assert (document["state"], document["params"], document["result"]) == (
        "succeeded",
        {"suite": "smoke"},
        {"exit": 0},
    )
    [event] = [
        event
        for event in (await running.admin.get("/events?ice_name=lab-1")).json["items"]
        if event["action"] == "request-operation"
    ]
    assert event["via"] == "command"


async def test_who_is_not_there_is_told(running):
    await (await connected(running)).close()
    await running.eventually("/ices/lab-1", lambda answer: answer.json["connection"] is None)
    await running.settled()
    made = await running.command(*RUN)
    assert made.stderr == "ice-gateway: the ICE is not connected: the operation waits\n"


async def test_an_operation_of_a_pool(running):
    await running.command("pools", "set", "lab", "--label", "lab=yes")
    made = await running.command("operations", "run", "--pool", "LAB", "--kind", "execute")
    assert made.stderr == "ice-gateway: no ICE of the pool may do this kind: the operation waits\n"
    table = (await running.command("operations", "list", "--pool", "lab")).stdout.splitlines()
    assert table[1].split()[:6] == [made.stdout.strip(), "-", "lab", "execute", "queued", "no-ice"]
    ice = await connected(running)
    await running.command("ices", "label", "lab-1", "lab=yes")
    assert await take(ice) == made.stdout.strip()
    for wrong in ((), ("lab-1", "--pool", "lab")):
        await running.command("operations", "run", *wrong, "--kind", "execute", status=2)
    await running.command("operations", "run", "--pool", "none", "--kind", "execute", status=1)


@pytest.mark.sqlite
async def test_params_come_from_a_file_or_stdin(running, alone, tmp_path):
    ice = await connected(running)
    (tmp_path / "params.json").write_text(' {"from": "file"}\n')
    operation = await one_id(running, "--params", f"@{tmp_path}/params.json")
    await finished(ice, await take(ice), result=None)
    assert (await shown(running, operation))["params"] == {"from": "file"}
    (tmp_path / "params.json").write_text('{"from": "Windows"}', encoding="utf-16")
    made = await running.command(*RUN, "--params", f"@{tmp_path}/params.json")
    assert (await shown(running, made.stdout.strip()))["params"] == {"from": "Windows"}
    made = await alone(*RUN, "--params", "@-", stdin='\ufeff{"from": "stdin"}')
    assert made.status == 0, made
    assert (await shown(running, made.out.strip()))["params"] == {"from": "stdin"}


async def test_the_same_key_is_the_same_operation(running):
    await connected(running)
    first = await one_id(running, "--idempotency-key", "build 7")
    assert await one_id(running, "--idempotency-key", "build 7") == first
    assert await one_id(running, "--idempotency-key", "build 8") != first


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three(shared):
    """A gateway with three ICEs, of which two are connected."""
    await connected(shared)
    await connected(shared, "build-7", "ci-cd")
    await shared.provision("new-1")
    return shared


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (("lab-9", "--kind", "execute"), 1, "ICE"),
        (("lab-1", "--kind", "dance"), 2, "'dance' is not one of"),
        (("lab-1",), 2, "Missing option '--kind'"),
        (("lab-1", "--kind", "execute", "--params", "{"), 2, "has to be JSON"),
        (("lab-1", "--kind", "execute", "--params", '"\ud800"'), 2, "has to be JSON"),
        (("lab-1", "--kind", "execute", "--params", "[" * 101 + "]" * 101), 2, "100 levels"),
        (("lab-1", "--kind", "execute", "--idempotency-key", "schedule:1"), 1, "idempotency_key"),
        (("lab-1", "--kind", "execute", "--params", "@/no/such"), 2, "No such file"),
        (("lab-1", "--kind", "schedule"), 1, "run_at: is required for schedule"),
        (("lab-1", "--kind", "schedule", "--run-at", "2026-11-22T18:00"), 2, "with a zone"),
        (("lab-1", "--kind", "schedule", "--run-at", "2001-01-01T00:00:00Z"), 1, "is past"),
        (("lab-1", "--kind", "execute", "--deadline", "2001-01-01T00:00:00Z"), 1, "is past"),
        (("lab-1", "--kind", "execute", "--idempotency-key", ""), 1, "idempotency_key"),
        (("build-7", "--kind", "scrape"), 1, "a ci-cd ICE accepts only"),
        (("new-1", "--kind", "execute"), 1, "only a registered ICE"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_what_cannot_be_requested_is_refused(three, args, status, says):
    made = await three.command("operations", "run", *args, status=status)
    assert made.stdout == ""
    assert says in made.stderr
    assert (await three.admin.get("/operations")).json["items"] == []


async def test_params_one_byte_too_long_are_refused(running, tmp_path):
    await connected(running)
    path = tmp_path / "params.json"
    path.write_text(f'"{"x" * 999_998}"')
    await one_id(running, "--params", f"@{path}")
    path.write_text(f'"{"x" * 999_999}"')
    made = await running.command(*RUN, "--params", f"@{path}", status=1)
    assert made.stderr == "ice-gateway: params: at most 1,000,000 bytes of JSON\n"


# --- followed ----------------------------------------------------------------------------------


async def test_a_followed_operation_tells_how_far_it_is_and_prints_its_result(running):
    ice = await connected(running)
    following = asyncio.create_task(running.command(*RUN, "--follow"))
    operation = await take(ice)
    progress(ice, operation, fraction=0.5, message="half\nway")
    await running.eventually(f"/operations/{operation}", lambda answer: answer.json["progress"])
    await asyncio.sleep(0.5)  # two looks of the command
    await finished(ice, operation, result={"exit": 0})
    done = await following
    assert json.loads(done.stdout) == {"exit": 0}
    assert f"ice-gateway: operation {operation}\n" in done.stderr
    assert "ice-gateway: running 50% half\\nway\n" in done.stderr


async def test_the_id_comes_before_the_reason_why_a_followed_operation_waits(running):
    ice = await connected(running)
    await running.admin.post("/ices/lab-1/pause", {})
    following = asyncio.create_task(running.command(*RUN, "--follow"))
    waiting = await running.eventually("/operations", lambda answer: answer.json["items"])
    operation = waiting.json["items"][0]["id"]
    await running.admin.post("/ices/lab-1/resume")
    assert await take(ice) == operation
    await finished(ice, operation, result={})
    lines = (await following).stderr.splitlines()
    assert lines[0] == f"ice-gateway: operation {operation}"


@pytest.mark.gateway(tuning=Tuning(streams=StreamLimits(look_every=0.05)))
@pytest.mark.parametrize("over_api", [False, True], ids=["database", "url"])
async def test_a_followed_operation_says_again_why_it_waits(running, fork, tmp_path, over_api):
    ice = await connected(running)
    await running.admin.post("/ices/lab-1/pause", {})
    token = tmp_path / "api.token"
    token.touch(0o600)
    token.write_text(running.admin.token)
    there = ("--url", running.url, "--token-file", str(token))
    settings = running.gateway.settings
    here = ("--database", str(settings.database_url))
    arguments = (*there, *RUN, "--follow") if over_api else (*RUN, "--follow", *here)
    said = tmp_path / "said"
    said.touch()
    keys = {"ICE_GATEWAY_TOKENS__KEY_FILE": str(settings.key_file)}
    process = await fork.start(*arguments, streams={"err": str(said)}, environ=keys)

    async def says(*reasons):
        lines = [f"ice-gateway: {reason}: the operation waits" for reason in reasons]
        await until(lambda: [one for one in said.read_text().splitlines() if one in lines] == lines)

    await says("the ICE is paused")
    await ice.leave()
    await says("the ICE is paused", "the ICE is not connected")
    [operation] = (await running.admin.get("/operations")).json["items"]
    await running.admin.post(f"/operations/{operation['id']}/cancel")
    assert (await fork.end(process)).status == 1


async def test_a_followed_operation_shows_what_the_ice_logs(running):
    ice = await connected(running)
    following = asyncio.create_task(running.command(*RUN, "--follow"))
    operation = await take(ice)
    text = "first\r\n\tsecond \x1b[2J\x07\u202e\n\nlast"
    for part in (text[:8], text[8:]):
        log(ice, operation, part)
    await finished(ice, operation, result=1)
    done = await following
    assert done.stdout == "1\n"
    assert "first\n\tsecond \\x1b[2J\\x07\\u202e\n\nlast\n" in done.stderr
    # Not a terminal: as it is.
    shown = await running.command("operations", "log", operation)
    assert shown.stdout_bytes == text.encode()
    missing = await running.command("operations", "log", "none", status=1)
    assert missing.stderr == "ice-gateway: There is no such operation.\n"


async def test_a_log_cannot_control_a_terminal(fork, tmp_path):
    async with harness(tmp_path) as running:
        ice = await connected(running)
        operation = await one_id(running)
        await take(ice)
        log(ice, operation, "a\x1b[31m\tb\r\nc\x9b31m\n")
        await finished(ice, operation)
    controller, terminal = pty.openpty()
    try:
        ended = await fork.run(
            *("operations", "log", operation, *database(tmp_path)),
            streams={"out": os.ttyname(terminal)},
            environ={"TERM": "xterm"},
        )
        assert (ended.status, ended.err) == (0, "")
        assert os.read(controller, 65_536) == b"a\\x1b[31m\tb\r\nc\\x9b31m\r\n"
    finally:
        os.close(controller)
        os.close(terminal)


async def test_a_followed_operation_that_fails_is_status_1_and_a_line(running):
    ice = await connected(running)
    following = asyncio.create_task(running.command(*RUN, "--follow", status=1))
    error = {"code": "not-run", "message": "it said:\n\u001b[2J"}
    await finished(ice, await take(ice), "failed", error=error)
    done = await following
    assert done.stdout == ""
    assert done.stderr.endswith("ice-gateway: failed: not-run: it said: \\x1b[2J\n"), done.stderr


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("null", "null"),
        ('"it\\nbroke"', '"it\\nbroke"'),
        ("[1, {}]", "[1, {}]"),
        ('{"code": 7, "message": ["x"]}', '{"code": 7, "message": ["x"]}'),
        ('{"message": "no code"}', '{"message": "no code"}'),
        (f'"{"x" * 2000}"', f'"{"x" * 999}…'),
        ("[" * 50_000 + "]" * 50_000, None),
    ],
    ids=lambda value: value and value[:12],
)
async def test_whatever_an_ice_said_is_a_line(running, error, says):
    ice = await connected(running)
    key = ("--idempotency-key", "one")
    await one_id(running, *key)
    await finished(ice, await take(ice), "failed", error={"code": "x", "message": "y"})
    await running.gateway.engine.write(
        lambda transaction: transaction.run("UPDATE ice_operations SET error = $1", error)
    )
    done = await running.command(*RUN, *key, "--follow", status=1)
    line = "the operation has failed" if says is None else f"failed: {says}"
    assert done.stderr.splitlines()[-1] == f"ice-gateway: {line}"


async def test_followed_as_json_prints_the_document_also_of_a_failure(running):
    ice = await connected(running)
    following = asyncio.create_task(running.command(*RUN, "--follow", "--json", status=1))
    operation = await take(ice)
    await finished(ice, operation, "failed", error={"code": "x", "message": "y"})
    assert json.loads((await following).stdout)["error"] == {"code": "x", "message": "y"}


def junit(**cases):
    """A report of tests with these names and outcomes."""
    made = [
        f'<testcase name="{name}">{"" if outcome == "passed" else f"<{outcome}/>"}</testcase>'
        for name, outcome in cases.items()
    ]
    return f"<testsuites><testsuite>{''.join(made)}</testsuite></testsuites>"


ALL_FAIL = junit(**{f"t{number}": "failure" for number in range(12)})


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ({"junit": junit(good="passed", later="skipped")}, None),
        (
            {"junit": junit(good="passed", bad="failure", torn="error")},
            "2 of 3 tests failed: bad, torn",
        ),
        (ALL_FAIL, f"12 of 12 tests failed: {', '.join(f't{n}' for n in range(10))}, …"),
        ({"junit": junit()}, "no test ran"),
        ({"exit": 0}, "the result has no JUnit report of tests"),
        (None, "the result has no JUnit report of tests"),
    ],
)
async def test_the_status_may_say_whether_tests_failed(running, result, says):
    ice = await connected(running)
    status = 0 if says is None else 1
    following = asyncio.create_task(running.command(*RUN, "--fail-on-tests", status=status))
    await finished(ice, await take(ice), result=result)
    done = await following
    assert json.loads(done.stdout) == result, "the result is printed in any case"
    if says is not None:
        assert done.stderr.splitlines()[-1] == f"ice-gateway: {says}"


async def test_a_followed_operation_may_be_cancelled_elsewhere(running):
    ice = await connected(running)
    following = asyncio.create_task(running.command(*RUN, "--follow", status=1))
    operation = await take(ice)
    # Not by a command: two at once in one process write to one stderr.
    assert (await running.admin.post(f"/operations/{operation}/cancel")).status == 200
    await expect_cancel(ice, operation)
    done = await following
    assert "ice-gateway: cancelled: cancelled: cancelled by " in done.stderr


async def test_a_command_cancels_what_an_ice_works_on(running):
    ice = await connected(running)
    operation = await one_id(running)
    await take(ice)
    assert (await running.command("operations", "cancel", operation)).output == ""
    await expect_cancel(ice, operation)


@pytest.mark.long
async def test_without_a_gateway_it_waits_and_expires_at_its_deadline(alone, tmp_path):
    first = await waits(tmp_path)
    ended = await alone(*RUN, "--follow", "--deadline", soon(6))
    assert (ended.status, ended.out) == (1, "")
    assert "no gateway runs on this database" in ended.err
    assert ended.err.endswith("ice-gateway: expired: deadline: its deadline has passed\n")
    listed = json.loads((await alone("operations", "list", "lab-1", "--json")).out)
    assert [(item["state"], item["id"] == first) for item in listed] == [
        ("expired", False),
        ("queued", True),
    ]


async def test_ctrl_c_lets_the_operation_go_on(alone, tmp_path):
    await waits(tmp_path)
    controller, terminal = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", *RUN, "--follow"),
            *("--database", f"sqlite:///{tmp_path}/ice.db"),
            stdout=asyncio.subprocess.PIPE,
            stderr=terminal,
            env=environment(TERM="xterm", COLUMNS="100"),
        )
        said = bytearray()

        def read() -> None:
            """Read all the time: a terminal that nobody reads holds up whoever writes to it."""
            with contextlib.suppress(OSError):
                said.extend(os.read(controller, 65_536))

        asyncio.get_running_loop().add_reader(controller, read)
        await until(lambda: b"\xe2\x94\x81" in said)  # the bar
        process.send_signal(signal.SIGINT)
        out, _ = await process.communicate()
        assert (process.returncode, out) == (130, b"")
        await until(lambda: b"the operation goes on: ice-gateway operations show " in said)
    finally:
        asyncio.get_running_loop().remove_reader(controller)
        os.close(controller)
        os.close(terminal)
    listed = json.loads((await alone("operations", "list", "--json")).out)
    assert [item["state"] for item in listed] == ["queued", "queued"]


# --- listed and cancelled ----------------------------------------------------------------------


async def test_the_list_is_newest_first_and_filtered(running):
    ice = await connected(running)
    await connected(running, "build-7", "ci-cd")
    first = await one_id(running)
    await finished(ice, await take(ice), result=1)
    await in_state(running, first, "succeeded")
    made = await running.command("operations", "run", "build-7", "--kind", "remote-execute")
    second = made.stdout.strip()

    async def listed(*args):
        return [
            item["id"]
            for item in json.loads(
                (await running.command("operations", "list", *args, "--json")).stdout
            )
        ]

    assert await listed() == [second, first]
    assert await listed("LAB-1") == [first]
    assert await listed("--state", "succeeded") == [first]
    assert await listed("--kind", "remote-execute") == [second]
    assert await listed("--limit", "1") == [second]
    table = (await running.command("operations", "list", "lab-1")).stdout.splitlines()
    assert table[0].split() == [
        *("ID", "ICE", "POOL", "KIND", "STATE", "WAITS", "BY", "CREATED", "FINISHED"),
    ]
    assert table[1].split()[:5] == [first, "lab-1", "-", "execute", "succeeded"]
    await running.command("operations", "list", "lab-9", status=1)


async def test_what_is_not_there_or_has_finished_is_refused(running):
    ice = await connected(running)
    for action in ("show", "cancel"):
        gone = await running.command("operations", action, "no-such-id", status=1)
        assert gone.stderr == "ice-gateway: There is no such operation.\n"
    operation = await one_id(running)
    await finished(ice, await take(ice), result=1)
    await in_state(running, operation, "succeeded")
    late = await running.command("operations", "cancel", operation, status=1)
    assert late.stderr == "ice-gateway: the operation has succeeded\n"


@pytest.mark.parametrize("column", UNREADABLE)
async def test_what_an_older_version_stored_is_shown(running, column):
    await connected(running)
    operation = await one_id(running)
    await running.command("operations", "cancel", operation)
    await stored(running, operation, column, UNREADABLE[column])
    assert (await shown(running, operation))["id"] == operation
    listed = await running.command("operations", "list", "--json")
    assert [one["id"] for one in json.loads(listed.stdout)] == [operation]
    assert operation in (await running.command("operations", "list")).stdout
    assert operation in (await running.command("operations", "show", operation)).stdout


async def test_json_that_is_long_when_it_is_indented_is_printed_as_it_is(running):
    await connected(running)
    deep = "[" * 99 + "0," * 100_000 + "0" + "]" * 99
    operation = await one_id(running, "--params", "{}")
    await stored(running, operation, "params", deep)
    done = await running.command("operations", "show", operation, "--json")
    assert len(done.stdout) < 2 * len(deep)
    assert json.loads(done.stdout)["params"] == json.loads(deep)
