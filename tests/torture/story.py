"""What two admins and some ICEs do to a gateway at once, and what each of them was told.

What they were told comes over sockets, and is kept by this process, which outlives the gateway's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.support.harness import API
from tests.support.ice import Ice, Key, Refused

ADMINS = ("anna", "bert")
PROVISIONED = [f"p-{number}" for number in range(3)]
REGISTERED = [f"r-{number}" for number in range(4)]
DEREGISTERED = ["d-0", "d-1"]
BULK = [f"b-{number}" for number in range(3)]
"""Registered ICEs that only a bulk action touches: it is done to all of them or to none."""
NEWCOMER, REGULAR = PROVISIONED[0], REGISTERED[0]
"""The ICEs that run meanwhile: one registers, one comes back."""

_SUITABLE = {
    "reprovision": PROVISIONED[:-1],
    "reregister": REGISTERED[:-1] + DEREGISTERED,
    "deregister": REGISTERED[:-1],
    "disconnect": REGISTERED[:-1],
}
"""What an action by chance is done to."""
_AIMED = {"reprovision": PROVISIONED[-1]}
"""What the action is done to that is aimed at, so that it is not refused; else the last of the registered."""


@dataclass
class Known:
    """An ICE as its machine knows it."""

    token: str
    key: Key


@dataclass(frozen=True)
class Call:
    """One action of an admin: of `bulk` the names are many."""

    admin: str
    action: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """What an admin was told of a call; `status` None where the answer was lost."""

    call: Call
    status: int | None
    body: Any = None


@dataclass(frozen=True)
class Heard:
    """What an ICE has met: `welcome` with the generation, `refused` or `closed` with the code, or `lost`."""

    ice_name: str
    what: str
    code: int | str | None = None


@dataclass
class Account:
    """All that was told."""

    told: list[Told] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)


def plot(chance: random.Random, aimed: str) -> dict[str, list[Call]]:
    """The calls of each admin; `aimed` is among the first admin's unless an ICE does it."""
    new = iter(f"new-{number}" for number in range(100))
    first = [_call(chance, ADMINS[0], new) for _ in range(chance.randrange(2))]
    if aimed != "register":
        first.append(_call(chance, ADMINS[0], new, aimed))
    first += [_call(chance, ADMINS[0], new) for _ in range(2)]
    second = [_call(chance, ADMINS[1], new) for _ in range(3)]
    if aimed == "register":  # the newcomer's token is to be good
        first, second = (
            [call for call in calls if NEWCOMER not in call.names] for calls in (first, second)
        )
    elif chance.random() < 0.3:  # somebody else means the same ICE
        second[0] = Call(ADMINS[1], *_same(first[-1]))
    return {ADMINS[0]: first, ADMINS[1]: second}


def _same(call: Call) -> tuple[str, tuple[str, ...]]:
    return (call.action, call.names) if call.action != "bulk" else ("deregister", (REGULAR,))


def _call(chance: random.Random, admin: str, new: Iterator[str], aimed: str | None = None) -> Call:
    action = aimed or chance.choice(["provision", *_SUITABLE])
    if action == "provision":
        return Call(admin, action, (next(new),))
    if action == "bulk":
        return Call(admin, action, (*BULK, chance.choice(PROVISIONED), "nobody"))
    if aimed:
        return Call(admin, action, (_AIMED.get(action, REGISTERED[-1]),))
    return Call(admin, action, (chance.choice(_SUITABLE[action]),))


async def act_out(
    url: str, plan: dict[str, list[Call]], api_tokens: dict[str, str], known: dict[str, Known]
) -> Account:
    """Let all of them act at once, until each is through or has lost the gateway."""
    account = Account()
    ices = {name: Ice(url, known[name].token, known[name].key) for name in (NEWCOMER, REGULAR)}
    running = [asyncio.ensure_future(_live(name, ice, account)) for name, ice in ices.items()]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session:
        await asyncio.gather(
            *(
                _call_all(session, url, api_tokens[admin], calls, account)
                for admin, calls in plan.items()
            )
        )
    await asyncio.wait(running, timeout=0.02)  # an ICE may still hear of what has been done
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    return account


async def _call_all(
    session: aiohttp.ClientSession, url: str, token: str, calls: list[Call], account: Account
) -> None:
    for call in calls:
        path, body = _request(call)
        try:
            async with session.post(
                f"{url}{API}{path}", json=body, headers={"Authorization": f"Bearer {token}"}
            ) as answer:
                told = Told(call, answer.status, await answer.json(content_type=None))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            account.told.append(Told(call, None))
            return
        account.told.append(told)


def _request(call: Call) -> tuple[str, Any]:
    if call.action == "provision":
        return "/ices", {"ice_name": call.names[0], "ice_type": "ci-cd"}
    if call.action == "bulk":
        return "/ices/bulk", {"action": "deregister", "ice_names": list(call.names)}
    return f"/ices/{call.names[0]}/{call.action}", None


async def _live(name: str, ice: Ice, account: Account) -> None:
    """Connect, and stay as long as one is let."""

    def hears(what: str, code: int | str | None = None) -> None:
        account.heard.append(Heard(name, what, code))

    writer = None
    try:
        reader, writer = await ice.begin()
        connection = await ice.finish(reader, writer)
        hears("welcome", connection.welcome["generation"])
        while (frame := await connection.frame()) is not None:
            if frame.opcode == 8:  # RFC 6455 section 5.5.1: a close
                hears("closed", int.from_bytes(frame.data[:2], "big"))
                return
        hears("lost")
    except Refused as refused:
        hears("refused", refused.code)
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        hears("lost")
    finally:
        if writer is not None:
            writer.close()
