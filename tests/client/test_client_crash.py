"""Killed at any instant of its registration, or interrupted, a client registers or continues at the next start.

The instants are found by counting: every call into the system that something outside of the process could
see, from the start to the admission.
"""

import asyncio
import json
import os
import signal

import pytest

from tests.client.scripted_gateway import NAME, admit, grant, wait
from tests.support.machine import CI_CD, new_key

FILES = {"key.pem", "token", "state.json", "operations.db", "lock"}


@pytest.fixture
def place(running, tmp_path):
    """Provision an ICE: how to run it, the option for its token, and its state folder."""

    async def place(name):
        ice = await running.provision(name)
        token = tmp_path / f"{name}.token"
        token.write_text(ice.token)
        run = ("run", "--gateway", running.url, "--state-dir", tmp_path / name)
        return run, ("--token-file", token), tmp_path / name

    return place


@pytest.fixture
async def steps(fork, place):
    """The steps of a registration that nothing disturbs."""
    run, token, _ = await place("undisturbed")
    ended = await fork.run(*run, *token, steps=True, until_admitted=True)
    assert ended.status == 0, f"the client should have registered: {ended}"
    assert {"mkdir", "flock", "fsync", "replace", "socket.connect"} < set(ended.steps), ended.steps
    return ended.steps


@pytest.mark.parametrize(
    "starts",
    [
        pytest.param((False,), id="plainly"),
        pytest.param((False, True), id="both ways", marks=pytest.mark.long),
    ],
)
async def test_killed_at_any_step_it_is_admitted_after_the_next_start(
    fork, place, steps, running, starts
):
    """`starts` says whether the next start is given the token again."""
    seen = set()
    for at, step in enumerate(steps):
        when = f"killed before step {at}, {step}"
        for given_again in starts:
            name = f"lab-{at:03}-{'again' if given_again else 'first'}"
            run, token, folder = await place(name)
            killed = await fork.run(
                *(*run, *token), steps=True, at=at, signal=signal.SIGKILL, until_admitted=True
            )
            # What the gateway sends may come in fewer parts than it did at first.
            assert killed.status == -signal.SIGKILL or at > len(steps) - 4, when
            left = {path.name: path.stat().st_size > 0 for path in folder.glob("*")}
            state = (*sorted(left.items()), sum(name.startswith("socket") for name in steps[:at]))
            if not given_again and state in seen:
                break  # a start from here has been tried
            seen.add(state)
            if not given_again:
                again = await fork.run(*run, until_admitted=True)
                if "token" not in left:
                    assert again.status == 3, f"{when}: the token was not stored yet"
                    assert "--token-file" in again.err, f"{when}: it should say what to do"
            if given_again or "token" not in left:
                again = await fork.run(*run, *token, until_admitted=True)
            assert again.status == 0, (
                f"{when}: it should be admitted at the next start, not {again}"
            )
            assert f"admitted as {name} " in again.out, when
            assert {path.name for path in folder.iterdir()} == FILES, f"{when}: something is left"
            assert await running.status(name) == "registered"


@pytest.mark.long
async def test_interrupted_at_any_step_it_says_one_line_and_ends_with_0(fork, place, steps):
    for at, step in enumerate(steps):
        run, token, folder = await place(f"lab-{at:03}")
        ended = await fork.run(
            *(*run, *token), steps=True, at=at, signal=signal.SIGINT, until_admitted=True
        )
        when = f"Ctrl-C before step {at}, {step}: {ended}"
        assert (ended.status, ended.err) == (0, ""), when
        assert ended.out.endswith("Z stopped on request\n"), when
        assert ended.out.count("stopped") == 1, when
        assert not list(folder.glob("*.new")), f"{when}: a file was left behind"


@pytest.fixture
def machine(running, tmp_path):
    """Make an enrolment key for one machine: how to run its client, and its state folder."""

    async def machine(name):
        _, secret = await new_key(running, CI_CD, name_prefix=f"{name}-")
        key = tmp_path / f"{name}.key"
        key.write_text(secret)
        key.chmod(0o600)
        where = ("run", "--gateway", running.url, "--state-dir", tmp_path / name)
        return (*where, "--enrolment-key-file", key), tmp_path / name

    return machine


@pytest.fixture
async def enrolling(fork, machine):
    """The steps of an enrolment, and of the registration after it, that nothing disturbs."""
    run, _ = await machine("undisturbed")
    ended = await fork.run(*run, steps=True, until_admitted=True)
    assert ended.status == 0, f"the client should have enrolled: {ended}"
    return ended.steps


@pytest.mark.long
async def test_killed_at_any_step_of_its_enrolment_it_goes_on(fork, machine, enrolling, running):
    for at, step in enumerate(enrolling):
        when = f"killed before step {at}, {step}"
        run, folder = await machine(f"m{at:03}")
        killed = await fork.run(*run, steps=True, at=at, signal=signal.SIGKILL, until_admitted=True)
        # What the gateway sends may come in fewer parts than it did at first.
        assert killed.status == -signal.SIGKILL or at > len(enrolling) - 4, when
        again = await fork.run(*run, until_admitted=True)
        assert again.status == 0, f"{when}: it should be admitted at the next start, not {again}"
        assert "admitted as m" in again.out, when
        assert {path.name for path in folder.iterdir()} == FILES, f"{when}: something is left"
    ices = (await running.admin.get("/ices?limit=200")).json["items"]
    assert {ice["status"] for ice in ices} <= {"registered", "provisioned"}
    keys = (await running.admin.get("/enrolment-keys?limit=200")).json["items"]
    assert {key["uses"] for key in keys} <= {0, 1}
    assert len(ices) == sum(key["uses"] for key in keys), "none has got two ICEs"


@pytest.mark.long
@pytest.mark.timeout(600)  # two processes for each step
async def test_killed_while_it_waits_for_an_approval_it_goes_on(
    fork, gateway, token, tmp_path, machine
):
    async def turn(gateway, request):
        if request.method == "POST":
            return await wait(retry_after=1)(gateway, request)
        if request.path.endswith("/enrolments/e-1"):
            return await grant(token, status=200)(gateway, request)
        return await admit(queue=gateway.held)(gateway, request)

    def arguments(name):
        key = tmp_path / "undisturbed.key"
        where = ("run", "--gateway", gateway.url, "--state-dir", tmp_path / name)
        return (*where, "--enrolment-key-file", key)

    await machine("undisturbed")
    gateway.script.extend([turn] * 10_000)
    undisturbed = await fork.run(*arguments("first"), steps=True, until_admitted=True)
    assert undisturbed.status == 0, undisturbed
    for at, step in enumerate(undisturbed.steps):
        run = arguments(f"n{at:03}")
        await fork.run(*run, steps=True, at=at, signal=signal.SIGKILL, until_admitted=True)
        gateway.handshakes.clear()
        again = await fork.run(*run, until_admitted=True)
        when = f"killed before step {at}, {step}"
        assert again.status == 0, f"{when}: {again}"
        assert f"admitted as {NAME}" in again.out, when
        assert {path.name for path in (tmp_path / f"n{at:03}").iterdir()} == FILES, when
        keys = {json.dumps(one.header["jwk"]) for one in gateway.handshakes}
        assert len(keys) == 1, f"{when}: all requests are made with one key"


@pytest.mark.long
async def test_interrupted_at_any_step_of_its_enrolment_it_says_one_line(fork, machine, enrolling):
    for at, step in enumerate(enrolling):
        run, folder = await machine(f"m{at:03}")
        ended = await fork.run(*run, steps=True, at=at, signal=signal.SIGINT, until_admitted=True)
        when = f"Ctrl-C before step {at}, {step}: {ended}"
        if ended.out:
            assert (ended.status, ended.err) == (0, ""), when
            assert ended.out.endswith("Z stopped on request\n"), when
        else:  # it was still reading the secret
            assert (ended.status, ended.err) == (130, "ice-client: interrupted\n"), when
        assert not list(folder.glob("*.new")), f"{when}: a file was left behind"


async def test_interrupted_before_it_has_begun_it_says_one_line(fork, place, tmp_path):
    run, _, folder = await place("lab-1")
    os.mkfifo(tmp_path / "fifo")
    process = await fork.start(*run, "--token-file", tmp_path / "fifo")
    with await asyncio.to_thread((tmp_path / "fifo").open, "wb"):  # opens once the client reads it
        os.kill(process, signal.SIGINT)
    # That its input ends wakes a client that was about to read when the signal came.
    ended = await fork.end(process)

    assert ended.status == 130
    assert (ended.out, ended.err.strip()) == ("", "ice-client: interrupted")
    assert not folder.exists()
