"""The secret of a webhook: made, sealed for the database, and used to sign. Pure.

Source: Standard Webhooks 1.0 (standardwebhooks.com), symmetric signatures.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Final

from gateway.core import sealing
from gateway.core.secret import Secret
from gateway.core.tokens import Key

PREFIX: Final = "whsec_"
_BYTES: Final = 32  # Standard Webhooks: 24 to 64
_PURPOSE: Final = b"ice-gateway webhook secrets"


def new_secret() -> Secret:
    """A new random secret."""
    return Secret(PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode())


def signature_headers(
    secret: Secret, message_id: str, now: datetime, body: bytes
) -> dict[str, str]:
    """The headers by which a receiver verifies that this gateway sent `body` at `now`."""
    timestamp = str(int(now.timestamp()))
    key = base64.b64decode(secret.reveal().removeprefix(PREFIX))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    signature = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{signature}",
    }


def seal(key: Key, webhook_id: str, secret: Secret) -> str:
    """The secret as the database keeps it: the id of the key, then the secret sealed for this webhook alone."""
    plain, context = secret.reveal().encode(), webhook_id.encode()
    return f"{key.kid}.{sealing.seal(key.derived(_PURPOSE), plain, context)}"


def sealed_by(sealed: str) -> str:
    """The id of the key that sealed a secret."""
    return sealed.partition(".")[0]


def open_sealed(
    find_key: Callable[[str], Key | None], webhook_id: str, sealed: str
) -> Secret | None:
    """The secret that was sealed; None without its key, or if the row is not what `seal` made for this webhook."""
    kid, _, text = sealed.partition(".")
    key = find_key(kid)
    if key is None:
        return None
    plain = sealing.open_sealed(key.derived(_PURPOSE), text, webhook_id.encode())
    return None if plain is None else Secret(plain.decode())
