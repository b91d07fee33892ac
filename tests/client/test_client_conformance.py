"""`ice-client conformance`: the reference client passes, and what a program does not do is named."""

import json
import sys

import pytest
from click.testing import CliRunner

from client.cli import main
from client.conformance.program import Place
from client.conformance.report import Report
from client.conformance.runner import run, scenarios_for, status_of
from client.conformance.scenarios import SCENARIOS
from client.conformance.sentences import ENROLMENT, Sentence
from client.conformance.stage import Kit
from tests.client.scripted_gateway import make_token

REFERENCE = (sys.executable, "-m", "client", "run", "--handlers", "client.examples.conformance")


@pytest.fixture
def invoke(tmp_path):
    """Run the command against a Python program."""

    def invoke(*arguments, program="", folder=tmp_path / "kit"):
        command = ["--", sys.executable, "-c", program]
        words = ["conformance", "--state-dir", str(folder), *arguments, *command]
        return CliRunner().invoke(main, words)

    return invoke


async def test_the_reference_client_keeps_what_a_short_run_tries(tmp_path):
    chosen = frozenset({Sentence.TOKEN_TRIMMED, Sentence.CANCEL, Sentence.EIGHT_FINISHES})
    kit, told = Kit(REFERENCE, tmp_path / "kit", report=Report(chosen)), []
    await run(kit, 3, told.append)

    assert list(kit.report.lines())[-1] == "3 passed, 0 failed, 0 not tried"
    assert len(told) == 3
    assert status_of(kit) == 0
    # Beside them it judges all that it sees.
    assert not list(Report.failed(kit.report))
    for sentence in (Sentence.PROOF_KEY, Sentence.NONCE, Sentence.MESSAGES, Sentence.TOKEN_SECRET):
        assert kit.report.verdict(sentence) == "passed"


@pytest.mark.long
async def test_the_reference_client_keeps_every_sentence(tmp_path):
    kit = Kit(REFERENCE, tmp_path / "kit")
    await run(kit, 8, lambda _: None)
    assert status_of(kit) == 0, "\n".join(kit.report.lines())


@pytest.mark.long
async def test_the_reference_client_keeps_every_sentence_about_enrolment(tmp_path):
    kit = Kit(REFERENCE, tmp_path / "kit", report=Report(ENROLMENT))
    await run(kit, 8, lambda _: None)
    assert status_of(kit) == 0, "\n".join(kit.report.lines())


FAULTS = {
    Sentence.ENROL_REQUEST: "enrolment.platform.hostname = lambda: 'a' * 300\nenrolment._MAX_HOSTNAME = 300",
    Sentence.ENROL_SECRET: "credentials.EnrolmentSecret.reveal = lambda secret: 'another'",
    Sentence.ENROL_PROOF: "made = enrolment.proof\nenrolment.proof = lambda *one, **more: made(*one, **more | {'htm': 'PUT'})",
    Sentence.ENROL_KEY: "made = enrolment.proof\nenrolment.proof = lambda _, *one, **more: made(credentials.Key.generate(), *one, **more)",
    Sentence.ENROL_TOKEN: "identity.Identity.token = property(lambda _: credentials.Token(TOKEN))",
    Sentence.ENROL_WAIT: "backoff.Backoff.waiting = lambda *_: 0.1",
    Sentence.ENROL_WAIT_KEPT: "enrolment.Enroller._unfinished = lambda one, _: identity.Enrolment(gateway=one._gateway)",
    Sentence.ENROL_ANEW: "enrolment._ASK_ANEW = frozenset()",
    Sentence.ENROL_RETRIED: "backoff.Backoff.refused = lambda *_, **__: 0.1",
    Sentence.ENROL_FINAL: "backoff.Stopped = lambda *_: 0.5",
    Sentence.ENROL_SECRET_KEPT: "made = cli._read_secret\ndef told(*one):\n    secret = made(*one)\n    print(secret.reveal(), flush=True)\n    return secret\ncli._read_secret = told",
}
"""Changes of the reference client, in a process of their own, each of which breaks a sentence about enrolment."""
FAULTY = f"""
from client import backoff, cli, credentials, enrolment, identity
from client.__main__ import main
TOKEN = {make_token()!r}
"""


def test_each_sentence_about_enrolment_has_a_fault():
    assert FAULTS.keys() == ENROLMENT


@pytest.mark.long
@pytest.mark.parametrize("sentence", FAULTS)
async def test_a_fault_of_an_enrolment_is_named(sentence, tmp_path):
    program = f"{FAULTY}{FAULTS[sentence]}\nmain()"
    command = (sys.executable, "-c", program, "run")
    kit = Kit(command, tmp_path / "kit", report=Report(frozenset({sentence})))
    await run(kit, 4, lambda _: None)
    assert kit.report.failed() == [sentence], "\n".join(kit.report.lines())


def test_every_sentence_has_a_scenario():
    """But for those that are judged everywhere, or over all of them."""
    tried = frozenset().union(*(one.sentences for one in SCENARIOS))
    anywhere = {Sentence.TOKEN_SECRET, Sentence.BACKOFF_JITTER}
    assert tried == set(Sentence) - anywhere
    for sentence in Sentence:
        assert scenarios_for(frozenset({sentence}))
    assert len({one.name for one in SCENARIOS}) == len(SCENARIOS)


def test_a_program_that_ends_at_once_fails_with_its_last_line(invoke, tmp_path):
    ended = invoke(
        "--only", "handshake", "--json", program="print('no\\nwork'); raise SystemExit(7)"
    )
    assert ended.exit_code == 1
    [row] = json.loads(ended.stdout)["sentences"]
    assert row["verdict"] == "failed"
    assert row["seen"] == "no attempt came after its start (status 7: work) (in connects)"
    assert (tmp_path / "kit" / "connects" / "output-1.txt").read_text() == "no\nwork\n"


def test_what_a_program_prints_is_searched_for_the_token(invoke):
    program = "import os; print(open(os.environ['ICE_CLIENT_TOKEN_FILE']).read())"
    ended = invoke("--only", "token-secret", program=program)
    assert ended.exit_code == 1
    assert ended.stdout.startswith("failed     token-secret")
    assert "see " in ended.stdout


def test_what_a_program_stores_is_searched_for_the_secret(invoke):
    """Also where it does nothing else that it should."""
    program = "import os, shutil; os.mkdir(kept := os.environ['ICE_CLIENT_STATE_DIR']); shutil.copy(os.environ['ICE_CLIENT_ENROLMENT_KEY_FILE'], kept)"
    ended = invoke("--enrolment", "--only", "enrol-secret-kept", program=program)
    assert ended.exit_code == 1
    assert ended.stdout.startswith("failed     enrol-secret-kept")
    assert "it is in enrolment-key.txt (in enrols)" in ended.stdout


def test_a_part_of_the_secret_is_not_the_secret(tmp_path):
    """It is base64url, so it may have a `_` anywhere."""
    place = Place("", tmp_path, enrols=True)
    place.state_dir.mkdir()
    key = place.state_dir / "key"
    random = f"{'s' * 40}_s"
    for text, kept in (("s", True), (random, False)):
        key.write_text(text)
        [finding] = place.judge_stored(f"iceek_{'0' * 32}_{random}")
        assert finding.ok is kept


def test_a_command_that_is_none_and_a_folder_in_use_are_usage(invoke, tmp_path):
    (tmp_path / "file").touch()
    assert invoke(folder=tmp_path).exit_code == 2
    missing = ["conformance", "--state-dir", str(tmp_path / "new"), "--", str(tmp_path / "none")]
    ended = CliRunner().invoke(main, missing)
    assert ended.exit_code == 2
    assert "cannot be started: No such file or directory" in ended.stderr
    assert invoke("--only", "everything").exit_code == 2
    for words in (("--only", "enrol-key"), ("--only", "pong", "--enrolment")):
        assert invoke(*words, folder=tmp_path / words[1]).exit_code == 2
