"""Hashes and verifies passwords with argon2id, in a thread, one at a time."""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

import argon2

from gateway.core.problems import Problem, invalid
from gateway.core.secret import Secret

MIN_LENGTH: Final = 12
"""Minimum characters of a new password; an existing password may be shorter."""
MAX_BYTES: Final = 1024
"""Maximum UTF-8 bytes of a new password; an existing password may be longer."""
RULE: Final = f"{MIN_LENGTH} characters or more and at most {MAX_BYTES:,} bytes"
_AT_ONCE: Final = 1
"""A hash takes 64 MiB, and four threads for a tenth of a second: a flood of logins must leave memory and processor
time for admissions."""
_MAX_WAITING: Final = 32


def is_acceptable(password: Secret) -> bool:
    """Whether it may be set as a new password, by `RULE`."""
    text = password.reveal()
    try:
        return len(text) >= MIN_LENGTH and len(text.encode()) <= MAX_BYTES
    except UnicodeEncodeError:  # surrogates: bytes of a terminal or file that are not UTF-8
        return False


def check_password(password: Secret, field: str = "password") -> Problem | None:
    """The refusal of a new password; `field` is where it was given."""
    return None if is_acceptable(password) else invalid(field, f"a password must have {RULE}")


class TooBusy(Exception):
    """Too many passwords are waiting to be verified."""


class Passwords:
    """One object for both hashing and verifying, so that the limit covers both.

    Args:
        hasher: sets the cost of a hash; by default that of argon2-cffi (RFC 9106, low memory).
    """

    def __init__(self, hasher: argon2.PasswordHasher | None = None) -> None:
        self._hasher = hasher or argon2.PasswordHasher()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0
        self._decoy_hash: str | None = None

    async def hash(self, password: Secret) -> str:
        """The hash to store for a new password."""
        async with self._slots:
            return await asyncio.to_thread(self._hasher.hash, password.reveal())

    async def verify(self, hashed: str | None, password: Secret) -> bool:
        """Whether `password` matches the hash; False, after the same time, if there is none.

        Raises:
            TooBusy: too many passwords are waiting.
        """
        if self._waiting >= _MAX_WAITING:
            raise TooBusy
        self._waiting += 1
        try:
            async with self._slots:
                return await asyncio.to_thread(self._verify, hashed, password.reveal())
        finally:
            self._waiting -= 1

    def _verify(self, hashed: str | None, password: str) -> bool:
        if hashed is None:
            # The time it takes must not reveal which user names exist.
            self._decoy_hash = self._decoy_hash or self._hasher.hash(secrets.token_urlsafe())
        try:
            self._hasher.verify(hashed or self._decoy_hash or "", password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False
        return hashed is not None
