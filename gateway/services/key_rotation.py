"""Rotates the token keys: a key is added, promoted to seal new tokens, and later retired.

Only provisioned ICEs need a key: the token of a registered ICE is found by its hash once its key is retired
(`node.admission`). The key file keeps the ids of retired keys.

Adding and promoting are two steps, so that every process can open tokens of a key before one seals with it.
The key file changes inside a write transaction of the database, and tokens are sealed inside one too
(`provisioning`). So no token can be sealed with a key between the check that no ICE needs it and its
retirement. A crash between the file and the commit leaves a changed file without its event; that does no
harm, since a running gateway also watches the file.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gateway.core.audit_event import Actor, AuditAction, Event
from gateway.core.ice import Status
from gateway.core.times import Clock
from gateway.core.tokens import Key, KeyRing
from gateway.core.webhook_secret import open_sealed, seal
from gateway.store import events, key_file, webhooks
from gateway.store.engine import (
    Engine,
    Fetch,
    OutcomeUnknown,
    StoreLocked,
    StoreUnavailable,
    T,
    Transaction,
    Unit,
    begin,
)
from gateway.store.ices import of_unknown_key, sealed_with
from gateway.store.key_file import KeyFileUnusable


@dataclass(frozen=True, slots=True)
class KeyState:
    """A key; `made` is None if it was not recorded, and the provisioned `ices` cannot register without the key."""

    kid: str
    made: datetime | None
    seals: bool
    ices: list[str]


@dataclass(frozen=True, slots=True)
class KeyRefused:
    """Why a key cannot be promoted or retired, and the ICEs that still need it."""

    sentence: str
    ices: Sequence[str] = ()


class Keys:
    """Lists and changes the keys. Every method raises `StoreUnavailable` and `KeyFileUnusable`."""

    def __init__(self, *, engine: Engine, path: Path, clock: Clock) -> None:
        self._engine = engine
        self._path = path
        self._clock = clock

    async def list(self) -> list[KeyState]:
        """All keys, oldest first."""
        ring = self._read()
        return [
            KeyState(
                key.kid,
                key.made,
                key.kid == ring.seals,
                await _ices_needing(key, self._engine.fetch),
            )
            for key in ring.keys
        ]

    async def rotate(self, actor: Actor) -> str:
        """Add a key that only opens tokens; returns its id."""
        key = Key.generate(self._clock())

        async def unit(transaction: Transaction) -> str:
            ring = self._read().with_key(key)
            self._replace(transaction, actor, AuditAction.ROTATE_KEYS, key.kid, ring)
            return key.kid

        return await self._write(unit)

    async def promote(self, actor: Actor, kid: str | None) -> str | KeyRefused:
        """Seal new tokens with `kid`, or with the newest key if None; returns its id."""

        async def unit(transaction: Transaction) -> str | KeyRefused:
            ring = self._read()
            chosen = kid or ring.keys[-1].kid
            if chosen not in {key.kid for key in ring.keys}:
                return _no_such_key(chosen)
            if chosen == ring.seals:
                return KeyRefused(f"the key {chosen} seals already; add another with `rotate`")
            ring = ring.sealing_with(chosen)
            self._replace(transaction, actor, AuditAction.PROMOTE_KEY, chosen, ring)
            return chosen

        return await self._write(unit)

    async def retire(self, actor: Actor, kid: str) -> KeyRefused | None:
        """Remove a key that no provisioned ICE needs: its tokens never open again.

        The secrets of webhooks are sealed by the key that seals first, in a transaction of their own: a crash between
        the key file and a commit must not lose them.
        """
        if await webhooks.sealed_secrets(self._engine.fetch, kid):
            await self._engine.write(functools.partial(self._reseal, kid=kid))

        async def unit(transaction: Transaction) -> KeyRefused | None:
            ring = self._read()
            key = next((key for key in ring.keys if key.kid == kid), None)
            if key is None:
                return _no_such_key(kid)
            if kid == ring.seals:
                return KeyRefused(f"the key {kid} seals: promote another first")
            sealed = await webhooks.sealed_secrets(transaction.fetch, kid)
            if sealed:  # one whose row is damaged: `_reseal` could not open it
                names = ", ".join(name for _, name, _ in sealed)
                return KeyRefused(
                    f"the key {kid} sealed the secret of a webhook: delete {names}, and make it anew"
                )
            needing = await _ices_needing(key, transaction.fetch)
            if needing:
                return KeyRefused(
                    f"the key {kid} is needed by {len(needing)} provisioned ICE"
                    f"{'' if len(needing) == 1 else 's'}: reprovision each, or let it register first",
                    needing,
                )
            self._replace(transaction, actor, AuditAction.RETIRE_KEY, kid, ring.retiring(kid))
            return None

        return await self._write(unit)

    async def _reseal(self, transaction: Transaction, kid: str) -> None:
        found = await webhooks.sealed_secrets(transaction.fetch, kid)
        ring = self._read()
        if kid == ring.seals:
            return
        for webhook_id, _, sealed in found:
            secret = open_sealed({key.kid: key for key in ring.keys}.get, webhook_id, sealed)
            if secret is not None:
                resealed = seal(ring.sealing_key, webhook_id, secret)
                await webhooks.reseal(transaction, webhook_id, resealed)

    async def _write(self, unit: Unit[T]) -> T:
        """`Engine.write`, with an error that says that the file may be changed although the commit failed."""

        async def alone(transaction: Transaction) -> T:
            await begin(transaction)  # from now on no other process changes the file
            return await unit(transaction)

        try:
            return await self._engine.write(alone)
        except StoreLocked:  # the transaction did not begin
            raise
        except StoreUnavailable as error:
            raise OutcomeUnknown(
                f"{error}; the key file may be changed already: see `ice-gateway keys list`"
            ) from error

    def _read(self) -> KeyRing:
        ring = key_file.read(self._path)
        if ring is None:
            raise KeyFileUnusable(
                f"there is no key file {self._path}: provisioning the first ICE makes it"
            )
        return ring

    def _replace(
        self, transaction: Transaction, actor: Actor, action: str, kid: str, ring: KeyRing
    ) -> None:
        event = Event.of(self._clock(), actor, action, key=kid)
        events.append(transaction, [event])
        key_file.replace(self._path, ring)


async def _ices_needing(key: Key, fetch: Fetch) -> list[str]:
    """The provisioned ICEs that need a key; one whose key is unknown may need any that existed at its time."""
    known = (await sealed_with(fetch, Status.PROVISIONED)).get(key.kid, [])
    return sorted({*known, *await of_unknown_key(fetch, key.made)}, key=str.lower)


def _no_such_key(kid: str) -> KeyRefused:
    return KeyRefused(f"there is no key {kid}; see `ice-gateway keys list`")
