"""Seals bytes by AES-256-GCM into a text that only the same key and context open. Pure.

Source: NIST SP 800-38D.
"""

from __future__ import annotations

import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.core import base64url

_IV_BYTES: Final = 12  # section 8.2.2: a random IV of 96 bits


def seal(key: bytes, plain: bytes, context: bytes = b"") -> str:
    """IV, ciphertext and tag in base64url. `key` has 32 bytes; `context` is authenticated, and not part of the text."""
    iv = secrets.token_bytes(_IV_BYTES)
    return base64url.encode(iv + AESGCM(key).encrypt(iv, plain, context))


def open_sealed(key: bytes, text: str, context: bytes = b"") -> bytes | None:
    """What `seal` was given; None for another key or context, or a changed text."""
    try:
        data = base64url.decode(text)
        return AESGCM(key).decrypt(data[:_IV_BYTES], data[_IV_BYTES:], context)
    except (ValueError, InvalidTag):
        return None
