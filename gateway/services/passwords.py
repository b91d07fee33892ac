"""Hashes and checks passwords: argon2id, in a thread, one after the other."""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

import argon2

from gateway.core.secret import Secret

MIN_LENGTH: Final = 12
"""Characters,"""
MAX_BYTES: Final = 1024
"""and bytes in UTF-8, of a password that is set. One that was set before is checked as it is."""
RULE: Final = f"{MIN_LENGTH} characters or more and at most {MAX_BYTES:,} bytes"
_AT_ONCE: Final = 1
"""A hash takes 64 MiB, and four threads for a tenth of a second: a flood of logins must not take all
of either from admissions."""
_WAITING: Final = 32


def is_acceptable(password: Secret) -> bool:
    """Whether it may be set: `RULE` says what is needed."""
    text = password.reveal()
    try:
        return len(text) >= MIN_LENGTH and len(text.encode()) <= MAX_BYTES
    except UnicodeEncodeError:  # bytes of a terminal or file that are no UTF-8
        return False


class TooBusy(Exception):
    """So many passwords wait to be checked that another would not be checked soon."""


class Passwords:
    """Shared by whoever sets passwords and whoever checks them, so that the bound holds for both."""

    def __init__(self) -> None:
        self._hasher = argon2.PasswordHasher()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0
        self._decoy_hash: str | None = None

    async def hash(self, password: Secret) -> str:
        """The hash to store."""
        async with self._slots:
            return await asyncio.to_thread(self._hasher.hash, password.reveal())

    async def verify(self, hashed: str | None, password: Secret) -> bool:
        """Whether `password` is the one that was hashed; takes as long when there is no hash.

        Raises:
            TooBusy: too many wait already.
        """
        if self._waiting >= _WAITING:
            raise TooBusy
        self._waiting += 1
        try:
            async with self._slots:
                return await asyncio.to_thread(self._verify, hashed, password.reveal())
        finally:
            self._waiting -= 1

    def _verify(self, hashed: str | None, password: str) -> bool:
        if hashed is None:
            # Names that do not exist must not be told from those that do by the time it takes.
            self._decoy_hash = self._decoy_hash or self._hasher.hash(secrets.token_urlsafe())
        try:
            self._hasher.verify(hashed or self._decoy_hash or "", password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False
        return hashed is not None
