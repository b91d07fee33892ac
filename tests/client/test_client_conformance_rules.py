"""The conformance kit's judgement: each rule passes what keeps a sentence, and names what breaks it."""

import json
import re
from pathlib import Path

import pytest

from client.conformance.backoff_rules import Wait, bound, grows, judge_bound, judge_jitter
from client.conformance.enrolment_rules import is_enrolment, judge_enrolment
from client.conformance.message_rules import (
    fault_of,
    judge_finish,
    judge_hello,
    judge_log,
    judge_progress,
)
from client.conformance.report import Finding, Report, Verdict
from client.conformance.request_rules import (
    BadProof,
    Request,
    judge_proof,
    judge_request,
    read_proof,
)
from client.conformance.sentences import CANNOT_TRY, Sentence
from client.conformance.stage import make_secret
from client.credentials import Key, Token, proof
from client.protocol import MAX_LOG_BYTES, MAX_MESSAGE
from tests.client.scripted_gateway import NOW, b64, make_token, unb64

URL = "https://gateway.example/a/ice/v1"
TOKEN = make_token()
SECRET = make_secret()
KEY = Key.generate()


def made(**changes):
    return proof(KEY, changes.pop("htu", URL), Token(TOKEN), **{"now": NOW} | changes)


def request(dpop=None, target="/a/ice/v1", method="GET", **headers):
    usual = {
        "Upgrade": "WebSocket",
        "Connection": "keep-alive, Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "other, ice.v1",
        "Authorization": f"DPoP {TOKEN}",
        "DPoP": made() if dpop is None else dpop,
    }
    headers = usual | {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(method, target, [*headers.items()])


def failed(findings):
    return {finding.sentence for finding in findings if not finding.ok}


# --- requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({}, set()),
        ({"method": "POST"}, {Sentence.HANDSHAKE}),
        ({"Upgrade": "h2c"}, {Sentence.HANDSHAKE}),
        ({"Connection": "close"}, {Sentence.HANDSHAKE}),
        ({"Sec_WebSocket_Version": "8"}, {Sentence.HANDSHAKE}),
        ({"Sec_WebSocket_Protocol": "chat"}, {Sentence.HANDSHAKE}),
        ({"target": "/ice/v1"}, {Sentence.HANDSHAKE, Sentence.PREFIX}),
        ({"target": f"/a/ice/v1?token={TOKEN}"}, {Sentence.PREFIX}),
        ({"Authorization": f"Bearer {TOKEN}"}, {Sentence.AUTHORIZATION}),
        ({"Authorization": f"DPoP \ufeff{TOKEN}"}, {Sentence.AUTHORIZATION}),
    ],
)
def test_a_request_is_judged_by_the_sentence_that_it_breaks(changes, sentences):
    assert failed(judge_request(request(**changes), URL, TOKEN)) == sentences


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"now": NOW + 61}, Sentence.PROOF_TIME),
        ({"now": NOW * 1000}, Sentence.PROOF_TIME),
        ({"htm": "POST"}, Sentence.PROOF_CLAIMS),
        ({"htu": "https://gateway.example/ice/v1"}, Sentence.PROOF_CLAIMS),
        ({"htu": f"{URL}?a=b"}, Sentence.PROOF_CLAIMS),
        ({"htu": "gateway"}, Sentence.PROOF_CLAIMS),
        ({"jti": "x" * 257}, Sentence.PROOF_CLAIMS),
    ],
)
def test_claims_are_judged(changes, sentence):
    found, findings = judge_proof(request(made(**changes)), URL, TOKEN, NOW)
    assert failed(findings) == {sentence}
    assert found.thumbprint == KEY.thumbprint()


@pytest.mark.parametrize(
    "htu", [URL, "wss://GATEWAY.example:443/a/ice/v1", "https://gateway.example:443/a/ice/v1"]
)
def test_a_url_may_be_written_in_several_ways(htu):
    found, findings = judge_proof(request(made(htu=htu, nonce="n")), URL, TOKEN, NOW)
    assert not failed(findings)
    assert found.nonce == "n"


def test_the_token_of_the_proof_counts():
    assert failed(judge_proof(request(), URL, "another", NOW)[1]) == {Sentence.PROOF_CLAIMS}
    without = Request("GET", "/", [])
    assert failed(judge_proof(without, URL, TOKEN, NOW)[1]) == {Sentence.PROOF_FORM}


def changed(**changes):
    """A proof whose header is another one, with the signature of the usual one."""
    header, claims, signature = made().split(".")
    other = json.loads(unb64(header)) | changes
    return ".".join((b64(json.dumps(other).encode()), claims, signature))


def cut(at):
    header, claims, signature = made().split(".")
    return ".".join((header, claims, b64(unb64(signature)[:at])))


JWK = KEY.jwk()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a.b", Sentence.PROOF_FORM),
        (made() + "=", Sentence.PROOF_FORM),
        (made(jti="x" * 4000), Sentence.PROOF_FORM),
        (f"{b64(b'[]')}.e30.AA", Sentence.PROOF_FORM),
        (changed(typ="JWT"), Sentence.PROOF_FORM),
        (changed(alg="RS256"), Sentence.PROOF_FORM),
        (changed(jwk=JWK | {"d": JWK["x"]}), Sentence.PROOF_KEY),
        (changed(jwk=JWK | {"x": "AAAA"}), Sentence.PROOF_KEY),
        (changed(jwk=JWK | {"x": 1}), Sentence.PROOF_FORM),
        (changed(jwk={"kty": "EC", "crv": "P-256"}), Sentence.PROOF_KEY),
        (changed(jwk=Key.generate().jwk()), Sentence.PROOF_KEY),
        (changed(jwk=None), Sentence.PROOF_KEY),
        (cut(63), Sentence.PROOF_KEY),
    ],
)
def test_a_proof_that_cannot_be_read_says_what_it_breaks(text, sentence):
    with pytest.raises(BadProof) as problem:
        read_proof(text)
    assert problem.value.sentence is sentence


def test_the_proof_of_the_documents_is_one():
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text("utf-8")
    [dpop] = re.findall(r"^GET .*\n(?:.+\n)*DPoP: (.+)$", page, re.MULTILINE)
    assert read_proof(dpop).thumbprint == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


@pytest.mark.parametrize(
    ("changes", "body", "sentences"),
    [
        ({}, {}, set()),
        ({}, {"ice_name": "lab-1", "provisionedto": "ada", "later": 1}, set()),
        ({"method": "GET", "target": "/a/ice/v1/enrolments/e-1"}, None, set()),
        ({"method": "GET"}, None, {Sentence.ENROL_REQUEST}),
        ({"method": "PUT"}, {}, {Sentence.ENROL_REQUEST}),
        ({}, None, {Sentence.ENROL_REQUEST}),
        ({}, {"hostname": None}, {Sentence.ENROL_REQUEST}),
        ({}, {"hostname": "x" * 254}, {Sentence.ENROL_REQUEST}),
        ({}, {"platform": "x" * 129}, {Sentence.ENROL_REQUEST}),
        ({}, {"platform": "a\nb"}, {Sentence.ENROL_REQUEST}),
        ({}, {"provisionedto": ""}, {Sentence.ENROL_REQUEST}),
        ({}, {"later": "x" * 9000}, {Sentence.ENROL_REQUEST}),
        ({"Authorization": f"DPoP {SECRET}"}, {}, {Sentence.ENROL_SECRET}),
        ({"Authorization": f"Bearer {TOKEN}"}, {}, {Sentence.ENROL_SECRET}),
        ({}, {"later": SECRET}, {Sentence.ENROL_SECRET}),
    ],
)
def test_an_enrolment_is_judged_by_the_sentence_that_it_breaks(changes, body, sentences):
    usual = {"method": "POST", "target": "/a/ice/v1/enrolments"}
    found = request(**usual | {"Authorization": f"Bearer {SECRET}"} | changes)
    wanted = {"hostname": "pc-7", "platform": "Linux"}
    data = b"" if body is None else json.dumps(wanted | body).encode()
    assert is_enrolment(found)
    assert failed(judge_enrolment(found, data, SECRET)) == sentences


def test_a_handshake_is_no_enrolment():
    assert not is_enrolment(request())


# --- messages ----------------------------------------------------------------------------------


def message(**members):
    return json.dumps({"jsonrpc": "2.0"} | members)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (message(method="ice.hello", params={}), True),
        (message(method="operation.finish", params={}, id=1), True),
        (message(id="op", result={"accepted": True}), True),
        (message(method="ice.hi", params={}), False),
        (message(method="operation.finish", params={}), False),
        (message(method="ice.hello", params={}, id=1), False),
        (f"[{message(method='ice.hello')}]", False),
        ("{", False),
        (message(method="operation.log", params={"text": "x" * MAX_MESSAGE}), False),
    ],
)
def test_messages_are_those_of_the_page(text, good):
    assert (fault_of(text) is None) is good


@pytest.mark.parametrize(
    ("params", "good"),
    [
        ({}, True),
        ({"version": None, "running": ["a"], "accepts": ["execute"], "later": 1}, True),
        ({"version": 1}, False),
        ({"running": None}, False),
        ({"running": [1]}, False),
        ({"accepts": ["bake"]}, False),
        (None, False),
    ],
)
def test_hello_has_the_right_types(params, good):
    assert judge_hello(params).ok is good


def finish(**members):
    return {"id": "op", "outcome": "failed"} | members


@pytest.mark.parametrize(
    ("params", "outcome", "good"),
    [
        (finish(outcome="succeeded", result=[1]), "succeeded", True),
        (finish(outcome="succeeded", result=[2]), "succeeded", False),
        (finish(error={"code": "a", "message": "b", "data": 1}), "failed", True),
        (finish(error={"code": 1, "message": "b"}), "failed", False),
        (finish(error="broken"), "failed", False),
        (finish(), "failed", False),
        (finish(outcome="done"), "failed", False),
        (finish(), "succeeded", False),
    ],
)
def test_a_finish_has_its_outcome_and_shape(params, outcome, good):
    assert judge_finish(params, outcome=outcome, result=[1]).ok is good


@pytest.mark.parametrize(
    ("reports", "good"),
    [
        ([{"id": "op", "fraction": 0.5, "message": "half"}], True),
        ([{"id": "op"}, {"id": "op", "message": "half"}], True),
        ([], False),
        ([{"id": "op", "fraction": 50, "message": "half"}], False),
        ([{"id": "op", "fraction": "0.5", "message": "half"}], False),
    ],
)
def test_progress(reports, good):
    assert judge_progress(reports, "half").ok is good


@pytest.mark.parametrize(
    ("pieces", "text", "good"),
    [
        (["ab", "c"], "abc", True),
        (["ab"], "abc", False),
        ([], "abc", False),
        (["ä" * (MAX_LOG_BYTES // 2)], "ä" * (MAX_LOG_BYTES // 2), True),
        (["ä" * MAX_LOG_BYTES], "ä" * MAX_LOG_BYTES, False),
        ([1], "1", False),
    ],
)
def test_the_pieces_of_a_log(pieces, text, good):
    assert judge_log([{"id": "op", "text": one} for one in pieces], text).ok is good


# --- waits ---------------------------------------------------------------------------------------


def test_a_wait_has_a_bound():
    assert [bound(n) for n in (1, 2, 3, 7, 9)] == [1, 2, 4, 60, 60]
    assert judge_bound(Wait(2, 2.9), slack=1).ok
    assert not judge_bound(Wait(2, 3.1), slack=1).ok


@pytest.mark.parametrize(
    ("seconds", "good"),
    [
        ([0.1, 0.9, 0.5, 0.2, 0.4], True),
        ([1.0, 1.01, 1.03, 1.0, 1.02], False),
        ([1.0, 1.01, 1.3, 1.0, 1.02], True),
        ([1.0, 1.01, 1.3, 1.0, 1.02] * 2, False),
        ([0.01, 0.0, 0.02, 0.03, 0.01], False),
        ([0.1, 0.9], None),
    ],
)
def test_waits_are_random(seconds, good):
    found = judge_jitter([Wait(1, one) for one in seconds])
    assert (found and found.ok) is good


def test_waits_grow():
    assert grows([Wait(1, 0.2), Wait(2, 1.9)])
    assert not grows([Wait(1, 0.9), Wait(2, 0.8), Wait(3, 1.1)])


# --- the report ------------------------------------------------------------------------------------


def test_a_sentence_that_failed_once_has_failed():
    report = Report(frozenset({Sentence.PONG, Sentence.FINAL, Sentence.HELLO}))
    report.add(Finding(Sentence.PONG, ok=False, seen="no\npong"), Finding(Sentence.PONG, ok=True))
    report.add(Finding(Sentence.FINAL, ok=True), Finding(Sentence.NONCE, ok=False))
    report.of("heartbeat").add(Finding(Sentence.PONG, ok=False, seen="another one"))
    report.of("lost").add(Finding(Sentence.PONG, ok=False, seen="another one"))
    report.skip(Sentence.HELLO, "there was no session")

    assert [report.verdict(one) for one in (Sentence.PONG, Sentence.FINAL, Sentence.HELLO)] == [
        *(Verdict.FAILED, Verdict.PASSED, Verdict.NOT_TRIED)
    ]
    assert report.failed() == [Sentence.PONG], "what was not asked for does not count"
    lines = [line.split(None, 2) for line in report.lines()]
    assert lines[0][:2] == ["passed", "final"]
    assert lines[-1] == ["1", "passed,", "1 failed, 1 not tried"]
    rows = {row["id"]: (row["verdict"], row["seen"]) for row in report.as_json()["sentences"]}
    assert rows == {
        "final": ("passed", ""),
        "hello": ("not tried", "there was no session"),
        "pong": ("failed", "no pong; another one (in heartbeat)"),
    }


def test_a_whole_report_says_what_cannot_be_tried():
    lines = list(Report().lines())
    assert lines[-len(CANNOT_TRY) :] == [f"- {what}: {why}" for what, why in CANNOT_TRY.items()]
