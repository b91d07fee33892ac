"""Entries of many ICEs, written straight into the database, so that none of them has to be provisioned and to register.

Prepared: users, entries (`registered`, each bound to the key of its ICE), one audit event for each, tokens, an
admin's API token. All of it goes through the gateway's own rules and SQL, in groups. Everything after it is real: each
admission opens a token, verifies a proof, and reads and writes the rows that it would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from gateway.cli.common import open_context
from gateway.core.accounts import User
from gateway.core.audit_event import Actor, AuditAction, Event, Via
from gateway.core.ice import Ice, IceType
from gateway.core.roles import Role
from gateway.core.times import utc_now
from gateway.runtime.setting_sources import load
from gateway.store import accounts, ices
from gateway.store.engine import Transaction
from tests.scale.agent import name_of

_ACTOR = Actor("scale", Via.COMMAND, "localhost")
_BATCH = 2_000
_USERS = 1_000
_CI_CD = 4
"""Every fourth ICE is of this type."""


async def prepare(
    database: str, key_file: Path, thumbprints: Sequence[str], tokens: Sequence[Path]
) -> str:
    """Make the entries; the API token of an admin.

    The files `tokens` take the tokens, in as many equal parts.
    """
    settings = load(None, {}, {"database.url": database, "tokens.key_file": str(key_file)})
    async with open_context(settings) as opened:
        services, now = opened.services, utc_now()
        ring = services.provisioning.keys.for_sealing(may_create=True)
        await services.accounts.add_user(opened.actor, "admin", Role.ADMIN, None)
        made = await services.accounts.create_token(opened.actor, "admin", "scale", 0)
        count = min(_USERS, len(thumbprints))

        async def users(transaction: Transaction) -> None:
            for number in range(count):
                user = User(f"user-{number:04}", Role.MEMBER, None, now)
                event = Event.of(now, _ACTOR, AuditAction.ADD_USER, user=user.name)
                await accounts.add_user(transaction, user, event)

        await opened.engine.write(users)
        size = len(thumbprints) // len(tokens)
        for part, file in enumerate(tokens):
            texts: list[str] = []
            for first in range(part * size, (part + 1) * size, _BATCH):
                new = []
                for number in range(first, min(first + _BATCH, (part + 1) * size)):
                    name = name_of(number)
                    of_ci_cd = number % _CI_CD == 0
                    kind = IceType.CI_CD if of_ci_cd else IceType.NORMAL
                    owner = None if of_ci_cd else f"user-{number % count:04}"
                    token = ring.seal(name, kind, 1, now)
                    texts.append(token.reveal())
                    ice = Ice.provision(
                        *(name, kind, owner, token.digest()),
                        key_id=ring.seals, now=now, expires=now + timedelta(days=7),
                    ).register(thumbprints[number], now=now)  # fmt: skip
                    event = Event(now, _ACTOR, "provision", name, 1, {})
                    new.append((ice, event, {"site": f"site-{number % 97}"}))
                await opened.engine.write(lambda t, new=new: ices.insert_many(t, new))
                await asyncio.sleep(0)
            file.write_text("\n".join(texts))
        return made.secret.reveal()
