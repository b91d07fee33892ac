"""What a browser keeps of a login that has begun."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.core.login_state import LIFETIME, LoginState, open_state
from gateway.core.secret import Secret

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
KEY, OTHER = b"k" * 32, b"o" * 32


def later(seconds):
    return NOW + timedelta(seconds=seconds)


def test_the_code_challenge_is_that_of_the_specification():
    verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"  # RFC 7636 appendix B
    login = LoginState("s", "n", verifier, "", 0.0)
    assert login.challenge == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_any_node_opens_it_with_any_of_its_keys():
    login = LoginState.new("ices/lab-1?x=y", NOW)
    sealed = login.seal(KEY)
    assert open_state(sealed, [OTHER, KEY], NOW) == login
    assert open_state(sealed, [OTHER], NOW) is None
    assert open_state(sealed, [], NOW) is None


def test_it_is_good_for_ten_minutes():
    sealed = LoginState.new("", NOW).seal(KEY)
    assert open_state(sealed, [KEY], later(LIFETIME)) is not None
    assert open_state(sealed, [KEY], later(LIFETIME + 1)) is None
    assert open_state(sealed, [KEY], later(-5)) is not None, "a node whose clock is behind"
    assert open_state(sealed, [KEY], later(-LIFETIME - 1)) is None


def test_nothing_of_it_can_be_read_or_guessed():
    login = LoginState.new("", NOW)
    assert not {login.state, login.nonce, login.verifier} & set(repr(login).split("'"))
    assert repr(login) == "LoginState(***)"
    assert login.verifier not in login.seal(KEY).reveal()
    assert len({LoginState.new("", NOW).state for _ in range(10)}) == 10
    assert 43 <= len(login.verifier) <= 128, "RFC 7636 section 4.1"


def changed(text, place):
    return text[:place] + ("B" if text[place] == "A" else "A") + text[place + 1 :]


def test_one_changed_character_spoils_it():
    text = LoginState.new("", NOW).seal(KEY).reveal()
    for place in range(len(text)):
        assert open_state(Secret(changed(text, place)), [KEY], NOW) is None


@pytest.mark.parametrize("text", ["", "A", "AAAA", "é", "*" * 40, "A" * 5000, "\ud800"])
def test_garbage_is_no_login(text):
    assert open_state(Secret(text), [KEY], NOW) is None


def test_the_longest_address_fits_into_a_cookie():
    sealed = LoginState.new("a" * 2048, NOW).seal(KEY)
    assert len(sealed.reveal()) < 4000
    assert open_state(sealed, [KEY], NOW) is not None
