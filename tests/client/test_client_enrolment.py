"""`Enroller` and the commands that enrol: contract sections 8 and 10."""

import asyncio
import base64
import hashlib
import json
import os
import signal
import stat

import pytest
from click.testing import CliRunner

from client.agent import IceClient
from client.backoff import ClosedByUs, Stopped
from client.cli import main
from client.credentials import EnrolmentSecret, IdentityProblem, NotAnEnrolmentKey, Token
from client.enrolment import Enrolled, Enroller
from client.environment import Environment
from client.identity import FolderUnusable, Identity, StateFolder
from client.protocol import EnrolmentCode, RefusalCode
from tests.client.scripted_gateway import (
    NAME,
    NOW,
    answer,
    grant,
    hang_up,
    make_token,
    refuse,
    wait,
)
from tests.support.machine import CI_CD, new_key

SECRET = f"iceek_{'0123456789abcdef' * 2}_{'S-_' * 14}s"
FINAL = [code for code in (*EnrolmentCode, *RefusalCode) if not code.retry]


@pytest.fixture
def make_enroller(gateway, folder, time, events):
    def make(**options):
        options = {
            "state_dir": folder,
            "observe": events.append,
            "environment": Environment(time.now, time.monotonic, time.sleep, time.uniform),
        } | options
        return Enroller(options.pop("gateway_url", gateway.url), EnrolmentSecret(SECRET), **options)

    return make


@pytest.fixture
def enrol(gateway, make_enroller):
    """Play a script and return the outcome."""

    async def play(*turns, **options):
        gateway.script.extend(turns)
        async with asyncio.timeout(10):
            return await make_enroller(**options).run()

    return play


@pytest.fixture
def key_file(tmp_path):
    file = tmp_path / "lab.key"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    return file


def paths(gateway):
    return [f"{one.method} {one.path}" for one in gateway.handshakes]


ASKS = "POST /ice/v1/enrolments"
POLLS = "GET /ice/v1/enrolments/e-1"

# --- one request -------------------------------------------------------------------------------


async def test_a_request_brings_what_the_contract_asks_for(enrol, gateway, folder, token, events):
    stored = {}

    async def look(gateway, request):
        stored.update({path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()})
        return await grant(token)(gateway, request)

    assert await enrol(look, name="lab-1", user="ada") == Enrolled("lab-1")

    [asked] = gateway.handshakes
    assert stored["key.pem"] == 0o600, "the key is stored before it is used"
    assert "token" not in stored
    assert paths(gateway) == [ASKS]
    assert asked.headers["Authorization"] == f"Bearer {SECRET}"
    assert asked.headers["Content-Type"] == "application/json"
    digest = base64.urlsafe_b64encode(hashlib.sha256(SECRET.encode()).digest())
    assert asked.claims["ath"] == digest.rstrip(b"=").decode()
    assert (asked.claims["htm"], asked.claims["htu"]) == (
        "POST",
        f"{gateway.url}/ice/v1/enrolments",
    )
    body = json.loads(asked.body)
    assert set(body) == {"hostname", "platform", "ice_name", "provisionedto"}
    assert (body["ice_name"], body["provisionedto"]) == ("lab-1", "ada")
    assert StateFolder(folder).token() == Token(token)
    state = StateFolder(folder).state()
    assert (state.home, state.gateway, state.enrolment) == (gateway.url, gateway.url, None)
    for path in folder.iterdir():
        assert SECRET.encode() not in path.read_bytes(), path
    assert [str(event) for event in events] == [
        f"enrolling at {gateway.url}/ice/v1/enrolments",
        "enrolled as lab-1",
    ]


async def test_without_names_the_gateway_chooses(enrol, gateway, token, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "b\udcfcro\n7" + "x" * 300)
    await enrol(grant(token))
    body = json.loads(gateway.handshakes[0].body)
    assert set(body) == {"hostname", "platform"}
    assert body["hostname"] == ("b\ufffdro 7" + "x" * 300)[:253]


async def test_the_token_registers_with_the_key_that_asked(enrol, gateway, token, folder):
    await enrol(grant(token))
    async with IceClient(gateway.url, state_dir=folder) as ice:
        await ice.connected()
    asked, handshake = gateway.handshakes
    assert handshake.headers["Authorization"] == f"DPoP {token}"
    assert asked.header["jwk"] == handshake.header["jwk"]


async def test_a_prefix_is_kept(enrol, gateway, token):
    await enrol(grant(token), gateway_url=f"{gateway.url}/behind/proxy/")
    assert paths(gateway) == ["POST /behind/proxy/ice/v1/enrolments"]


# --- waiting -----------------------------------------------------------------------------------


async def test_it_waits_for_the_approval_and_says_so_once(enrol, gateway, token, time, events):
    turns = [wait(), wait(retry_after=7), wait(retry_after=0), grant(token, status=200)]
    assert await enrol(*turns) == Enrolled(NAME)
    assert paths(gateway) == [ASKS, POLLS, POLLS, POLLS]
    assert [one.claims["htm"] for one in gateway.handshakes] == ["POST", "GET", "GET", "GET"]
    assert gateway.handshakes[1].claims["htu"] == f"{gateway.url}/ice/v1/enrolments/e-1"
    assert time.delays == [5.0, 7.0, 1.0]
    [line] = [str(event) for event in events if event.kind == "waiting"]
    assert line.startswith("waits for an admin to approve enrolment e-1 of the key ")


async def test_a_restart_goes_on_waiting(make_enroller, enrol, gateway, token, folder):
    gateway.script.append(wait())
    asleep = asyncio.Event()

    async def sleep(seconds):
        asleep.set()
        await asyncio.sleep(3600)

    enroller = make_enroller(name="lab-1", environment=Environment(sleep=sleep))
    running = asyncio.create_task(enroller.run())
    await asyncio.wait_for(asleep.wait(), 5)
    with pytest.raises(FolderUnusable, match="another ice-client runs"):
        await make_enroller().run()
    enroller.stop()
    assert await asyncio.wait_for(running, 5) == ClosedByUs(), "it should not wait for its sleep"
    pending = StateFolder(folder).state().enrolment
    assert (pending.id, pending.ice_name) == ("e-1", "lab-1")
    assert await enrol(wait(), grant(token, status=200)) == Enrolled(NAME)
    assert paths(gateway) == [ASKS, POLLS, POLLS]
    assert len({json.dumps(one.header["jwk"]) for one in gateway.handshakes}) == 1


async def test_another_name_is_another_request(make_enroller, enrol, gateway, token):
    gateway.script.append(wait())

    async def stop(_):
        stopped.stop()
        await asyncio.sleep(0)

    stopped = make_enroller(name="lab-1", environment=Environment(sleep=stop))
    assert await stopped.run() == ClosedByUs()
    await enrol(grant(token), name="lab-2")
    assert paths(gateway) == [ASKS, ASKS]
    assert json.loads(gateway.handshakes[1].body)["ice_name"] == "lab-2"


@pytest.mark.parametrize("code", ["not-found", "key-mismatch"])
async def test_an_enrolment_that_is_gone_is_asked_for_anew(code, enrol, gateway, token):
    await enrol(wait(), refuse(code), grant(token))
    assert paths(gateway) == [ASKS, POLLS, ASKS]


async def test_stopped_before_it_began(make_enroller, gateway):
    enroller = make_enroller()
    enroller.stop()
    assert await enroller.run() == ClosedByUs()
    assert gateway.handshakes == []


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", FINAL)
async def test_a_final_refusal_ends_it(code, enrol, gateway, time, folder):
    assert await enrol(refuse(code)) == Stopped(code, f"detail of {code}")
    assert (len(gateway.handshakes), time.delays) == (1, [])
    state = StateFolder(folder).state()
    assert (state.must_act, state.enrolment, state.code) == (True, None, code)


async def test_a_rejected_machine_stops(enrol, gateway):
    outcome = await enrol(wait(), refuse("enrolment-refused"))
    assert outcome == Stopped("enrolment-refused", "detail of enrolment-refused")
    assert paths(gateway) == [ASKS, POLLS]


@pytest.mark.parametrize(
    "turn",
    [
        refuse("overloaded"),
        refuse("queue-full", status=429, retry=True),
        refuse("proof-invalid", retry=True),
        answer(502, "<html>Bad gateway</html>"),
        answer(404),
        answer(307, Location="/thief"),
        answer(201, "<html>"),
        answer(201, json.dumps({"ice_name": "lab-1", "token": "hunter2"})),
        answer(202, json.dumps({"enrolment": "../../x", "retry_after": 1})),
        answer(200, "[" * 60_000),
        answer(201, " " * 200_000),
        hang_up,
    ],
)
async def test_other_answers_are_tried_again_with_the_same_key(turn, enrol, gateway, token, time):
    assert await enrol(turn, turn, grant(token)) == Enrolled(NAME)
    assert time.delays == [1.0, 2.0]
    assert time.draws == [(0.0, 1.0), (0.0, 2.0)]
    assert paths(gateway) == [ASKS] * 3, "a redirect must not get the secret"
    assert len({json.dumps(one.header["jwk"]) for one in gateway.handshakes}) == 1
    assert len({one.claims["jti"] for one in gateway.handshakes}) == 3


async def test_a_gateway_without_enrolment_is_told_from_a_proxy(enrol, token, events):
    body = json.dumps({"status": 404, "title": "Not found", "detail": "", "code": "not-found"})
    await enrol(answer(404, body), answer(502), grant(token))
    first, second = [str(event) for event in events if event.kind == "refused"]
    assert first.startswith("refused http-404: There is no enrolment at this address: the gateway")
    assert second.startswith("refused http-502: Something other than the gateway")


async def test_the_wait_for_an_approval_resets_the_backoff(enrol, token, time):
    await enrol(answer(502), answer(502), wait(), answer(502), grant(token, status=200))
    assert time.delays == [1.0, 2.0, 5.0, 1.0]


async def test_retry_after_is_obeyed(enrol, token, time):
    await enrol(refuse("overloaded", headers={"Retry-After": "300"}), grant(token))
    assert time.delays == [300.0]


async def test_a_clock_that_is_off_is_helped_by_a_nonce(enrol, gateway, token, time, events):
    nonces = [refuse("use-dpop-nonce", headers={"DPoP-Nonce": f"n-{n}"}) for n in range(3)]
    await enrol(nonces[0], wait(), nonces[1], wait(), nonces[2], grant(token))
    used = [one.claims.get("nonce") for one in gateway.handshakes]
    assert used == [None, "n-0", None, "n-1", None, "n-2"]
    assert time.delays == [5.0, 5.0], "a nonce is used at once"
    assert [event.kind for event in events].count("refused") == 1, "not with each poll"


async def test_no_gateway_at_all_is_tried_again(make_enroller, unused_tcp_port, time, events):
    enroller = make_enroller(gateway_url=f"http://127.0.0.1:{unused_tcp_port}")
    running = asyncio.create_task(enroller.run())
    await time.after_sleeps(2)
    enroller.stop()
    assert await running == ClosedByUs()
    assert time.delays[:2] == [1.0, 2.0]
    assert str(events[1]).startswith("unreachable: Connection refused")


async def test_a_token_that_cannot_be_stored_is_asked_for_again(enrol, gateway, folder, token):
    (folder / "token.new").mkdir(parents=True)
    with pytest.raises(FolderUnusable, match="cannot be used"):
        await enrol(grant(make_token()))
    (folder / "token.new").rmdir()
    assert await enrol(grant(token)) == Enrolled(NAME)
    assert len({json.dumps(one.header["jwk"]) for one in gateway.handshakes}) == 1
    assert StateFolder(folder).token() == Token(token)


async def test_a_state_that_cannot_be_stored_is_a_warning(enrol, folder, token, events):
    (folder / "state.json.new").mkdir(parents=True)
    assert await enrol(wait(), grant(token, status=200)) == Enrolled(NAME)
    assert {event.kind for event in events} == {"warning", "enrolling", "waiting", "enrolled"}


# --- where there is a token already ------------------------------------------------------------


async def test_with_a_token_nothing_is_asked(enrol, gateway, folder, token):
    Identity(folder, Token(token), gateway.url).close()
    assert await enrol() == Enrolled(None)
    assert gateway.handshakes == []
    assert StateFolder(folder).token() == Token(token)


async def test_the_token_of_another_gateway_is_not_replaced(enrol, gateway, folder, token):
    identity = Identity(folder, Token(token), "https://other.example")
    identity.update_state(gateway="https://other.example")
    identity.close()
    with pytest.raises(IdentityProblem, match=r"holds the token of https://other\.example"):
        await enrol()
    assert gateway.handshakes == []
    assert not StateFolder(folder).in_use()


# --- the secret --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [SECRET, f"\ufeff {SECRET[:50]}\r\n{SECRET[50:]}\n"], ids=["plain", "wrapped"]
)
def test_a_secret_is_read_as_it_is_copied(text):
    secret = EnrolmentSecret.from_bytes(text.encode())
    assert secret.reveal() == SECRET
    assert SECRET not in f"{secret!r} {secret}"


@pytest.mark.parametrize("text", ["", "hunter2", SECRET[:-1], SECRET + "x", make_token()])
def test_what_is_no_secret_is_refused(text):
    with pytest.raises(NotAnEnrolmentKey, match="begins with iceek_") as caught:
        EnrolmentSecret(text)
    assert not text or text not in str(caught.value)


# --- the commands ------------------------------------------------------------------------------


@pytest.fixture
def invoke(folder):
    def invoke(command, *arguments, **options):
        words = [command, "--state-dir", folder, *arguments]
        return CliRunner().invoke(main, [str(word) for word in words], **options)

    return invoke


async def test_enrol_ends_with_0_and_run_goes_on(gateway, fork, folder, key_file, token):
    gateway.script.append(grant(token))
    where = ("--gateway", gateway.url, "--state-dir", folder)
    ended = await fork.run("enrol", *where, "--enrolment-key-file", key_file, "--name", NAME)
    assert (ended.status, ended.err) == (0, "")
    assert [line.partition(" ")[2] for line in ended.out.splitlines()] == [
        f"enrolling at {gateway.url}/ice/v1/enrolments",
        f"enrolled as {NAME}",
    ]
    again = await fork.run("enrol", *where, "--enrolment-key-file", "/nonexistent")
    assert (again.status, again.err) == (0, "")
    assert again.out.endswith("Z this ICE already has a token\n")
    ran = await fork.run("run", *where, "--enrolment-key-file", "/no", until_admitted=True)
    assert (ran.status, ran.err) == (0, ""), "with a token the secret is not read"
    assert paths(gateway) == [ASKS, "GET /ice/v1"]


async def test_enrol_ends_with_3_and_one_line_when_refused(gateway, fork, folder):
    gateway.script.append(refuse("ice-exists", status=409, detail="Taken."))
    where = ("--gateway", gateway.url, "--state-dir", folder)
    ended = await fork.run("enrol", *where, "--enrolment-key-file", "-", stdin=f"{SECRET}\r\n")
    assert (ended.status, ended.err) == (3, "ice-client: ice-exists: Taken.\n")
    assert SECRET not in ended.out
    shown = await fork.run("status", "--state-dir", folder)
    assert shown.status == 3
    assert shown.out.endswith("\nto do: Taken.\n")


async def test_run_enrols_waits_and_says_so(gateway, fork, folder, key_file, token):
    gateway.script.extend([wait(retry_after=1), grant(token, status=200)])
    where = ("run", "--gateway", gateway.url, "--state-dir", folder)
    ended = await fork.run(*where, "--enrolment-key-file", key_file, until_admitted=True)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.count("waits for an admin to approve enrolment e-1 of the key") == 1
    assert f"Z admitted as {NAME}" in ended.out


@pytest.mark.parametrize("command", ["enrol", "run"])
async def test_a_signal_ends_the_wait_at_once(command, gateway, fork, folder, key_file):
    polled = asyncio.Event()

    async def hold(gateway, request):
        polled.set()
        return await wait(retry_after=3600)(gateway, request)

    gateway.script.extend([wait(retry_after=1), hold])
    where = ("--gateway", gateway.url, "--state-dir", folder, "--enrolment-key-file", key_file)
    process = await fork.start(command, *where)
    await asyncio.wait_for(polled.wait(), 10)
    shown = CliRunner().invoke(main, ["status", "--state-dir", str(folder)])
    assert "this ICE is not registered: it waits for approval since 20" in shown.stdout
    assert "\nto do: ask the admin to approve enrolment e-1\n" in shown.stdout
    assert shown.exit_code == 1
    os.kill(process, signal.SIGTERM)
    ended = await asyncio.wait_for(fork.end(process), 10)
    if command == "enrol":
        says = "ice-client: stopped on request: this ICE is not enrolled yet\n"
        assert (ended.status, ended.err) == (1, says)
    else:
        assert (ended.status, ended.err) == (0, "")
        assert ended.out.endswith("Z stopped on request\n")
    shown = CliRunner().invoke(main, ["status", "--state-dir", str(folder), "--json"])
    report = json.loads(shown.stdout)
    assert (report["enrolment"], report["must_act"]) == ("e-1", False)
    assert report["todo"] == (
        f"start it: ice-client run --gateway {gateway.url} --state-dir {folder}"
        f" --enrolment-key-file {key_file}"
    )


async def test_a_token_file_comes_before_the_enrolment_key(
    gateway, fork, folder, key_file, tmp_path
):
    """As in a service definition that names both."""
    file, token = tmp_path / "token", make_token()
    run = ("run", "--gateway", gateway.url, "--state-dir", folder, "--token-file", file)
    gateway.script.append(grant(token))
    ended = await fork.run(*run, "--enrolment-key-file", key_file, until_admitted=True)
    assert ended.status == 0
    assert ended.err.endswith("No such file or directory (using the enrolment key)\n")
    file.write_text(make_token(iat=NOW + 1))
    ended = await fork.run(*run, "--enrolment-key-file", "/nonexistent", until_admitted=True)
    assert (ended.status, ended.err) == (0, "")
    assert paths(gateway) == [ASKS, "GET /ice/v1", "GET /ice/v1"]


def test_a_key_file_of_no_use_ends_with_3(invoke, folder, tmp_path):
    (tmp_path / "key").write_text("hunter2")
    for command in ("enrol", "run"):
        for name, why in [("gone", "cannot be read: No such file"), ("key", "begins with iceek_")]:
            where = ("--gateway", "http://127.0.0.1:1", "--enrolment-key-file", tmp_path / name)
            result = invoke(command, *where)
            assert result.exit_code == 3
            assert why in result.stderr
            assert result.stderr.count("\n") == 1
            assert "hunter2" not in result.output
    assert not folder.exists()


async def test_a_key_file_that_others_can_read_is_warned_of(gateway, fork, folder, key_file):
    gateway.script.append(refuse("enrolment-refused"))
    key_file.chmod(0o644)
    where = ("--gateway", gateway.url, "--state-dir", folder, "--enrolment-key-file", key_file)
    ended = await fork.run("enrol", *where)
    assert ended.status == 3
    assert f"Z ice-client: warning: other users can read or change {key_file}, and" in ended.err


def test_enrol_needs_a_key_file_and_a_gateway(invoke, key_file):
    assert invoke("enrol", "--gateway", "https://gw.example").exit_code == 2
    result = invoke("enrol", "--enrolment-key-file", key_file)
    assert result.exit_code == 2
    assert "--gateway" in result.stderr


@pytest.mark.parametrize("place", ["environment", "settings"])
async def test_options_may_stand_elsewhere(place, gateway, fork, key_file, tmp_path):
    folder, token = tmp_path / "state", make_token()
    gateway.script.append(grant(token))
    options = {
        "gateway": gateway.url,
        "state_dir": str(folder),
        "enrolment_key_file": str(key_file),
    }
    settings, environ = tmp_path / "ice-client.toml", {}
    if place == "settings":
        settings.write_text("".join(f"{name} = {json.dumps(options[name])}\n" for name in options))
        environ = {"ICE_CLIENT_CONFIG": str(settings)}
    else:
        environ = {f"ICE_CLIENT_{name.upper()}": value for name, value in options.items()}
    ended = await fork.run("run", environ=environ, until_admitted=True)
    assert (ended.status, ended.err) == (0, "")
    assert StateFolder(folder).token() == Token(token)


# --- at a gateway ------------------------------------------------------------------------------


async def test_a_machine_enrols_at_a_gateway(running, folder, events):
    _, secret = await new_key(running, CI_CD)
    options = {"state_dir": folder, "observe": events.append}
    enroller = Enroller(running.url, EnrolmentSecret(secret), name="ci-7", **options)
    assert await enroller.run() == Enrolled("ci-7")
    async with IceClient(running.url, **options) as ice:
        assert (await ice.connected()).ice_name == "ci-7"
    assert await running.status("ci-7") == "registered"


async def test_an_approved_machine_enrols_at_a_gateway(running, folder, events):
    _, secret = await new_key(running, approval=True, provisionedto="*")

    async def approve(_):
        [waiting] = (await running.admin.get("/enrolments?state=waiting")).json["items"]
        assert waiting["thumbprint"] in str(events[-1]), "the admin can compare"
        await running.admin.post(f"/enrolments/{waiting['id']}/approve")

    enroller = Enroller(
        running.url,
        EnrolmentSecret(secret),
        name="lab-9",
        user="alice",
        state_dir=folder,
        observe=events.append,
        environment=Environment(sleep=approve),
    )
    assert await enroller.run() == Enrolled("lab-9")
    assert await running.status("lab-9") == "provisioned"


async def test_a_lost_answer_is_asked_for_again_at_a_gateway(running, folder):
    """As if the client had been killed before it stored the token of a key that is used up."""
    _, secret = await new_key(running, CI_CD)
    for _ in range(2):
        enroller = Enroller(running.url, EnrolmentSecret(secret), name="ci-7", state_dir=folder)
        assert await enroller.run() == Enrolled("ci-7")
        stored = (folder / "token").read_bytes()
        (folder / "token").unlink()
    (folder / "token").write_bytes(stored)
    async with IceClient(running.url, state_dir=folder) as ice:
        await ice.connected()
