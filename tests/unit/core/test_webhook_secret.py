"""A receiver's library accepts our signatures; a sealed secret opens for its webhook alone."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook as Oracle
from standardwebhooks import WebhookVerificationError

from gateway.core.times import utc_now
from gateway.core.tokens import Key
from gateway.core.webhook_secret import (
    new_secret,
    open_sealed,
    seal,
    sealed_by,
    signature_headers,
)

KEY = Key.generate(utc_now())


@given(st.text(alphabet="0123456789abcdef-", min_size=1), st.text())
def test_the_library_of_the_standard_verifies_it(message_id, text):
    secret, body = new_secret(), msgspec.json.encode({"text": text})
    headers = signature_headers(secret, message_id, utc_now(), body)
    assert Oracle(secret.reveal()).verify(body, headers) == {"text": text}


def test_it_refuses_another_body_and_an_old_message():
    secret = new_secret()
    oracle = Oracle(secret.reveal())
    headers = signature_headers(secret, "a-1", utc_now(), b'{"a":1}')
    assert oracle.verify(b'{"a":1}', headers) == {"a": 1}
    with pytest.raises(WebhookVerificationError):
        oracle.verify(b'{"a":2}', headers)
    with pytest.raises(WebhookVerificationError):
        oracle.verify(b'{"a":1}', headers | {"webhook-id": "a-2"})
    old = signature_headers(secret, "a-1", utc_now() - timedelta(minutes=6), b'{"a":1}')
    with pytest.raises(WebhookVerificationError, match="old"):
        oracle.verify(b'{"a":1}', old)


def test_secrets_are_random_and_hidden():
    one, other = new_secret(), new_secret()
    assert one != other
    assert one.reveal().startswith("whsec_")
    assert one.reveal() not in repr(one)


def test_a_sealed_secret_opens_with_its_key_for_its_webhook():
    secret, keys = new_secret(), {KEY.kid: KEY}
    sealed = seal(KEY, "w1", secret)
    assert secret.reveal() not in sealed
    assert sealed_by(sealed) == KEY.kid
    assert open_sealed(keys.get, "w1", sealed) == secret
    assert open_sealed(keys.get, "w2", sealed) is None
    assert open_sealed({}.get, "w1", sealed) is None
    other = Key(KEY.kid, bytes(32))
    assert open_sealed({KEY.kid: other}.get, "w1", sealed) is None
    for damaged in (sealed[:-2], sealed + "A", f"{KEY.kid}.", f"{KEY.kid}.!"):
        assert open_sealed(keys.get, "w1", damaged) is None
