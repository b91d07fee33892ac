"""The catalogue of refusals."""

from __future__ import annotations

import pytest

from client.protocol import RefusalCode
from gateway.core import problems
from gateway.core.problems import (
    ALREADY_EXISTS,
    MAX_QUOTED,
    NAME_IS_FINAL,
    invalid,
    problem,
    quoted,
    refusal,
)

STATUSES = {
    "malformed-json": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not-registered": 404,
    "method-not-allowed": 405,
    "ice-exists": 409,
    "wrong-status": 409,
    "stale": 412,
    "invalid": 422,
}
SAID = [
    *(problem(code) for code in sorted(problems.CODES)),
    *(refusal(code) for code in RefusalCode),
]


def test_the_contracts_codes_have_its_statuses():
    assert {code: problem(code).status for code in STATUSES} == STATUSES


@pytest.mark.parametrize("said", SAID, ids=lambda said: said.code)
def test_every_refusal_says_what_happened_and_what_to_do(said):
    assert said.title == said.title.strip() != ""
    assert said.detail[-1] == "." or said.detail == ALREADY_EXISTS
    document = said.document()
    assert {"status", "title", "detail", "code"} <= document.keys()
    assert (document["status"], document["code"]) == (said.status, said.code)


@pytest.mark.parametrize("code", [code for code in RefusalCode if code in problems.CODES])
def test_a_code_means_the_same_to_an_ice_and_to_an_admin(code):
    assert problem(code).status == refusal(code).status


@pytest.mark.parametrize("code", RefusalCode)
def test_a_handshake_is_refused_with_retry_and_every_401_with_a_challenge(code):
    said = refusal(code)
    assert said.document()["retry"] is code.retry
    assert said.headers.get("WWW-Authenticate", "").startswith("DPoP ") is (said.status == 401)


def test_the_challenge_for_a_nonce_bears_the_nonce():
    said = refusal(RefusalCode.USE_DPOP_NONCE, nonce="n")
    assert said.headers == {
        "WWW-Authenticate": 'DPoP error="use_dpop_nonce"',
        "DPoP-Nonce": "n",
    }


def test_a_refusal_with_a_reason_of_its_own_still_says_what_to_do():
    said = refusal(
        RefusalCode.PROOF_INVALID, detail="It was used before", retry=True, retry_after=0
    )
    assert said.detail == f"It was used before. {RefusalCode.PROOF_INVALID.detail}"
    assert said.document()["retry"] is True
    assert said.headers["Retry-After"] == "0"


def test_the_requirements_sentence_is_the_detail_of_an_existing_ice():
    assert problem("ice-exists").detail == ALREADY_EXISTS


def test_an_invalid_field_is_named():
    assert invalid("ice_name", "too long").document() == {
        "status": 422,
        "title": "Not valid",
        "detail": "ice_name: too long",
        "code": "invalid",
        "field": "ice_name",
    }


def test_a_refusal_quotes_little_of_what_was_sent():
    long = "\x01" * 1_000_000
    said = invalid(long, long)
    assert len(said.more["field"]) == MAX_QUOTED
    assert len(said.detail) <= 2 * MAX_QUOTED + 2
    assert len(problem("not-found", long).detail) <= 1000
    assert len(refusal(RefusalCode.PROOF_INVALID, detail=long).detail) < 1500
    assert quoted("x" * MAX_QUOTED) == "x" * MAX_QUOTED
    assert quoted("x" * 201) == "x" * 199 + "…"


def test_a_code_that_is_not_in_the_catalogue_is_a_fault_of_ours():
    with pytest.raises(KeyError):
        problem("no-such-code")


def test_the_requirements_sentences_stand_word_for_word():
    assert ALREADY_EXISTS == "ICE Provision Failed! ICE Name or User already exists"
    assert NAME_IS_FINAL == "ICE Names cannot be changed or deleted"
