"""`ice-client status`: am I registered, connected, and if not, what should be done?"""

import json
import os

import pytest
from click.testing import CliRunner

from client import protocol, status
from client.cli import main
from client.credentials import Token
from client.environment import Environment
from client.identity import Enrolment, Identity, State, StateFolder
from tests.client.scripted_gateway import NOW, admit, make_token, refuse
from tests.support.forks import ROOT

GATEWAY = "https://gw.example"
BEFORE, NOON, AFTER = (f"2026-11-22T{hour}:00:00Z" for hour in (11, 12, 13))


@pytest.fixture
def told():
    """The report's lines and what the exit status would be, for a folder as described."""

    def told(
        *,
        token=True,
        key=True,
        running=False,
        admitted=True,
        folder="/ice",
        decision=None,
        **state,
    ):
        stored = Token(make_token()) if token else None
        if stored and admitted:
            state = {"admitted": stored.digest(), "registered": True, "gateway": GATEWAY} | state
            state = {"ice_name": "lab-1", "ice_type": "normal"} | state
        found = status.Found(
            folder="/ice",
            named=folder == "named",
            exists=folder != "absent",
            has_key=key,
            token=stored,
            state=State(**state),
            running=running,
            decision=decision,
        )
        report = status.report(found)
        code = 0 if report.connected else 3 if report.must_act else 1
        return status.lines(found, report, NOON), code

    return told


START = f"to do: start it: ice-client run --gateway {GATEWAY}"
BY_ITSELF = "to do: nothing, it tries again by itself"
REGISTERED = f"lab-1 (normal) is registered at {GATEWAY}"
NO_MORE = "lab-1 (normal) is not registered any more"
ASK = "to do: ask the admin for a registration token, then: ice-client run --gateway URL --token-file FILE"


def test_no_folder(told):
    lines, code = told(token=False, key=False, folder="absent")

    assert lines == [
        "state folder: /ice (does not exist yet)",
        "this ICE is not registered: it has no token",
        "not connected: no client is running",
        ASK,
    ]
    assert code == 3


def test_a_key_without_a_token(told):
    lines, code = told(token=False, folder="named")

    assert lines[1:] == [
        "this ICE is not registered: it has no token, only a key",
        "not connected: no client is running",
        ASK.replace("URL", "URL --state-dir /ice"),
    ]
    assert code == 3


def test_a_token_that_was_never_admitted(told):
    lines, code = told(admitted=False, gateway=GATEWAY, code="unreachable", sentence="Nobody.")

    assert lines[1:] == [
        "this ICE is not registered yet: its token has not been admitted",
        "not connected: no client is running",
        "it last said unreachable: Nobody.",
        START,
    ]
    assert code == 1


def test_enrolled_and_not_yet_admitted(told):
    lines, _ = told(admitted=False, gateway=GATEWAY, ice_name="lab-1")

    assert lines[1] == "lab-1 is not registered yet: its token has not been admitted"


def test_connected(told):
    lines, code = told(running=True, connected=True, since=BEFORE)

    assert lines == [
        "state folder: /ice",
        REGISTERED,
        f"connected to {GATEWAY} since {BEFORE}",
    ]
    assert code == 0


@pytest.mark.parametrize(
    ("decision", "state", "says"),
    [
        (None, {}, None),
        (None, {"accepts": ["scrape"]}, "scrape"),
        (protocol.Accepts(accepts=[]), {"accepts": ["scrape"]}, "nothing"),
        (protocol.Accepts(accepts=None), {"accepts": ["scrape"]}, None),
        (protocol.Accepts(accepts=[]), {"ice_type": "ci-cd"}, None),
    ],
)
def test_what_others_may_send_is_told_if_it_is_limited(decision, state, says, told):
    lines, _ = told(running=True, connected=True, since=BEFORE, decision=decision, **state)
    assert lines[2:-1] == ([f"others may send: {says}"] if says else [])


def test_running_and_not_connected_says_why_and_when_it_tries_next(told):
    state = {"since": BEFORE, "code": "unreachable", "sentence": "Nobody listens."}
    why = f"not connected since {BEFORE}: unreachable: Nobody listens."

    lines, code = told(running=True, next=AFTER, **state)
    assert lines[1:] == [REGISTERED, why, f"it tries again at {AFTER}", BY_ITSELF]
    assert code == 1, "nobody needs to act"
    lines, _ = told(running=True, next=BEFORE, **state)
    assert lines[1:] == [REGISTERED, why, "it is trying to connect now", BY_ITSELF]


def test_started_and_not_heard_of_yet(told):
    lines, code = told(running=True, admitted=False, gateway=GATEWAY, next=BEFORE)

    assert lines[2:] == ["not connected", "it is trying to connect now", BY_ITSELF]
    assert code == 1


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("certificate-untrusted", "It is not trusted: name it with --ca-file."),
        ("proxy-refused", "The proxy asks for a password: set HTTPS_PROXY."),
        ("proxy-unusable", "HTTPS_PROXY cannot be understood."),
        ("not-a-gateway", "It does not speak ice.v1: correct the URL."),
        ("http-404", "HTTP 404 was answered: look at the URL."),
        ("unreachable", "No address is known for gw.example: check the name."),
        ("token-invalid", "Check that the token was copied whole."),
        ("too-many-attempts", "Check the tokens of the ICEs at this address."),
    ],
)
def test_running_and_its_sentence_says_what_to_do(code, sentence, told):
    state = {"code": code, "sentence": sentence, "actionable": True}
    lines, status_ = told(running=True, since=BEFORE, next=AFTER, **state)

    assert lines[-1] == "to do: what it says above; it tries again by itself"
    assert sentence in lines[2]
    assert status_ == 1, "it need not be started again"


@pytest.mark.parametrize(
    "code", ["unreachable", "draining", "overloaded", "store-unavailable", 1012, 4201]
)
def test_running_and_nothing_needs_to_be_done(code, told):
    lines, _ = told(running=True, next=AFTER, code=code, sentence="check.example is back soon.")

    assert lines[-1] == BY_ITSELF


def test_the_command_has_the_options_of_the_last_run(told):
    lines, _ = told(options=["--ca-file", "/etc/my ca.pem", "--insecure"])
    assert lines[-1] == START + " --ca-file '/etc/my ca.pem' --insecure"
    lines, _ = told(token=False, key=False, options=["--ca-file", "/ca.pem"])
    assert lines[-1] == ASK.replace("URL", "URL --ca-file /ca.pem")


WAITS = Enrolment(gateway=GATEWAY, id="e-1", since=BEFORE)


def test_waiting_for_an_approval(told):
    state = {"gateway": GATEWAY, "enrolment": WAITS}
    waits = f"this ICE is not registered: it waits for approval since {BEFORE} (enrolment e-1)"

    lines, code = told(token=False, running=True, next=AFTER, **state)
    assert lines[1:] == [
        waits,
        "not connected",
        f"it tries again at {AFTER}",
        "to do: ask the admin to approve enrolment e-1",
    ]
    assert code == 1
    lines, code = told(token=False, **state)
    assert lines[1:] == [
        waits,
        "not connected: no client is running",
        f"{START} --enrolment-key-file FILE",
    ]
    assert code == 1
    lines, _ = told(token=False, options=["--enrolment-key-file", "/k"], **state)
    assert lines[-1] == f"{START} --enrolment-key-file /k"


def test_enrolling_without_an_answer_yet(told):
    lines, code = told(token=False, running=True, gateway=GATEWAY, next=BEFORE)

    assert lines[1:] == [
        "this ICE is not registered: it has no token yet, and asks for one",
        "not connected",
        "it is asking the gateway now",
        BY_ITSELF,
    ]
    assert code == 1


def test_an_enrolment_that_was_refused(told):
    refusal = {"code": "enrolment-refused", "sentence": "Ask the admin."}
    lines, code = told(token=False, must_act=True, gateway=GATEWAY, **refusal)

    assert lines[3:] == ["it last said enrolment-refused: Ask the admin.", "to do: Ask the admin."]
    assert code == 3


def test_with_a_token_an_older_enrolment_does_not_count(told):
    lines, _ = told(enrolment=WAITS)

    assert lines[1] == REGISTERED


def test_while_it_moves_it_is_registered_nowhere_yet(told):
    lines, _ = told(home="https://old.example", running=True, next=AFTER)
    assert lines[1] == (
        f"lab-1 (normal) moves from https://old.example to {GATEWAY}, which has not admitted it yet"
    )


def test_not_running(told):
    lines, code = told(since=BEFORE)

    assert lines[1:] == [REGISTERED, f"not connected since {BEFORE}: no client is running", START]
    assert code == 1


def test_killed_while_it_was_connected(told):
    lines, code = told(connected=True, since=BEFORE)

    assert lines[2] == "not connected: no client is running", "since when, nobody has written"
    assert code == 1


@pytest.mark.parametrize(
    "code", ["deregistered", "token-replaced", "token-expired", "key-mismatch"]
)
def test_ended_by_a_refusal(code, told):
    cure = protocol.REFUSALS[code].detail
    lines, status_ = told(must_act=True, code=code, sentence=cure, registered=False)

    assert lines[1] == NO_MORE
    assert lines[3:] == [f"it last said {code}: {cure}", f"to do: {cure}"]
    assert status_ == 3


@pytest.mark.parametrize(("code", "refusal"), [(4101, "deregistered"), (4102, "token-replaced")])
def test_ended_by_a_closing_says_what_to_do_and_not_only_what_happened(code, refusal, told):
    sentence = protocol.CLOSINGS[code].sentence
    lines, status_ = told(must_act=True, code=code, sentence=sentence, registered=False)

    assert lines[4] == f"to do: {protocol.REFUSALS[refusal].detail}"
    assert status_ == 3


def test_ended_by_another_process_that_runs_as_this_ice(told):
    lines, code = told(must_act=True, code=4103, sentence="superseded: stop one of the two.")

    assert lines[1] == REGISTERED
    assert lines[4] == "to do: superseded: stop one of the two."
    assert code == 3


def test_the_key_is_gone(told):
    lines, code = told(key=False)

    assert "restore key.pem" in lines[-1]
    assert "reregister" in lines[-1]
    assert code == 3
    lines, code = told(key=False, admitted=False)
    assert code == 1, "before the registration a key is simply made"


# --- the command -------------------------------------------------------------------------------


@pytest.fixture
def command(folder):
    def command(*options):
        return CliRunner().invoke(main, ["status", "--state-dir", str(folder), *options])

    return command


def test_looking_leaves_no_traces(command, folder):
    assert command().exit_code == 3
    assert not folder.exists()


async def test_the_report_of_a_running_client(gateway, make_ice, command):
    gateway.script.append(admit())
    async with make_ice() as ice:
        await ice.connected()
        result = command("--json")
    told = json.loads(result.output)

    assert result.exit_code == 0, result
    assert {name: told[name] for name in ("ice_name", "ice_type", "gateway", "registered")} == {
        "ice_name": "lab-1",
        "ice_type": "normal",
        "gateway": gateway.url,
        "registered": True,
    }
    assert (told["connected"], told["running"], told["todo"], told["next"]) == (
        *(True, True, None, None),
    )
    assert told["since"].startswith("2027-01-15T")
    result = command("--json")
    told = json.loads(result.output)
    assert result.exit_code == 1, "it has stopped"
    assert (told["connected"], told["running"], told["must_act"]) == (False, False, False)


async def test_the_report_while_it_waits(gateway, make_ice, command, time):
    told = []

    async def sleep(seconds):
        told.append(json.loads(command("--json").output))
        await time.sleep(seconds)

    around = Environment(now=time.now, sleep=sleep, uniform=time.uniform)
    gateway.script.append(refuse("overloaded"))
    async with make_ice(environment=around) as ice:
        await ice.connected()

    (waiting,) = told
    assert (waiting["code"], waiting["sentence"]) == ("overloaded", "detail of overloaded")
    assert waiting["next"] == "2027-01-15T08:00:01Z", "a second after the refusal"
    assert (waiting["running"], waiting["connected"], waiting["todo"]) == (True, False, None)


async def test_a_client_that_was_killed_while_connected_is_not_connected_at_its_next_start(
    gateway, make_ice, command, folder, token
):
    killed = Identity(folder, Token(token))
    killed.update_state(
        admitted=killed.token.digest(), registered=True, connected=True, since=BEFORE
    )
    killed.close()
    told = []

    async def look(gateway, request):
        told.append(json.loads(command("--json").output))
        return await admit()(gateway, request)

    gateway.script.append(look)
    async with make_ice() as ice:
        await ice.connected()

    assert told[0]["running"]
    assert not told[0]["connected"], "it has only been started"
    assert told[0]["since"] == "2027-01-15T08:00:00Z", "nobody knows when the connection ended"


def test_a_newer_token_has_not_been_admitted(command, folder, token):
    identity = Identity(folder, Token(token))
    identity.update_state(admitted=identity.token.digest(), registered=True, gateway=GATEWAY)
    identity.close()
    StateFolder(folder).store_token(Token(make_token(NOW + 1)))

    result = command()
    assert "not registered yet" in result.output
    assert result.exit_code == 1


def test_a_key_or_token_that_is_spoilt_is_named(command, folder, token):
    Identity(folder, Token(token)).close()
    for name in ("key.pem", "token"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(b"spoilt")
        result = command()
        (folder / name).write_bytes(whole)

        assert result.exit_code == 3, "a person must act"
        assert result.stderr.startswith(f"ice-client: {folder / name}")
        assert result.stderr.count("\n") == 1


def test_a_damaged_decision_is_named_and_hides_nothing_else(command, folder):
    StateFolder(folder).store_decision(protocol.Accepts(accepts=[]))
    (folder / "accepts.json").write_text("{")
    result = command("--json")
    assert "accepts.json is damaged" in result.stderr
    assert json.loads(result.stdout)["accepts"] is None


def test_a_folder_that_cannot_be_read(command, folder):
    (folder / "token").mkdir(parents=True)
    result = command()

    assert result.exit_code == 1
    assert result.stderr == (
        f"ice-client: the state folder {folder} cannot be used: Is a directory\n"
    )


@pytest.mark.parametrize("closed", ["folder", "its parent"])
def test_a_folder_of_another_user(closed, tmp_path):
    folder = tmp_path / "parent" / "state"
    folder.mkdir(parents=True)
    shut = folder if closed == "folder" else folder.parent
    shut.chmod(0o000)
    mine = os.geteuid()
    if mine == 0:  # root may read everything, so for a moment it is somebody else
        os.seteuid(65534)
    try:
        result = CliRunner().invoke(main, ["status", "--state-dir", str(folder)])
    finally:
        os.seteuid(mine)
        shut.chmod(0o700)

    assert result.exit_code == 1, "how it stands cannot be told"
    assert result.stderr == (
        f"ice-client: the state folder {folder} cannot be used: Permission denied; it may belong"
        " to another user\n"
    )


def from_root(path):
    """The path as a client that is started there names it."""
    return os.path.relpath(path, ROOT)


async def test_the_options_of_a_run_are_kept_with_absolute_paths(folder, fork, tmp_path, token):
    (tmp_path / "mine.py").write_text("def register(ice, settings):\n    ice.stop()\n")
    (tmp_path / "c.toml").touch()
    here = from_root(tmp_path)
    options = {
        "--ca-file": f"{here}/ca.pem",
        "--handlers": f"{here}/mine.py",
        "--config": f"{here}/c.toml",
    }
    given = [word for option in options.items() for word in option]
    run = ("run", "--gateway", "http://gw.example", "--state-dir", folder, "--token-file", "-")
    ended = await fork.run(*run, *given, "--insecure", stdin=token)
    assert ended.status == 0, ended.err
    kept = [word for name, path in options.items() for word in (name, f"{ROOT}/{path}")]
    assert StateFolder(folder).state().options == [*kept, "--insecure"]


async def test_status_suggests_the_options(make_ice, command):
    async with make_ice(options=["--ca-file", "/ca.pem"]) as ice:
        await ice.connected()
    assert command().output.endswith(" --ca-file /ca.pem\n")
