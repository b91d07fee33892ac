"""Measures the admin's pages over a large fleet: the bytes of each, and how long it takes to come.

    python -m tests.bench.pages [--ices 10000] [--users 20000]

A page is to have at most 150 KiB and to take at most 200 ms on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp

from gateway.core.accounts import User
from gateway.core.audit_event import AuditAction, Event
from gateway.core.ice import IceType
from gateway.core.roles import Role
from gateway.core.times import utc_now
from gateway.services.bulk_actions import MAX_ISSUED, NewIce
from gateway.store import accounts
from tests.support.harness import ADMIN, Harness, harness
from tests.support.pages import Browser, has_password

MAX_BYTES = 150 * 1024
MAX_SECONDS = 0.2
ROUNDS = 15
PAGES = (
    "./",
    "./?page=150",
    "./?q=agent-77%20user-1",
    "./?status=provisioned&sort=provisionedon&desc=true",
    "./?sort=lastseen",
    "./?attention=token-expired",
    "users",
    "users?q=user-19",
    "users?page=300",
    "users/known?provisionedto=user",
    "api-tokens",
    "audit",
    "ices/agent-00077",
    "operations",
    "guide",
)
"""What is opened; a page that this version does not have is left out."""


async def add_users(running: Harness, count: int) -> None:
    """Add members `user-00000` and so on."""
    now = utc_now()

    async def add(transaction):
        for number in range(count):
            user = User(f"user-{number:05}", Role.MEMBER, None, now)
            event = Event.of(now, ADMIN, AuditAction.ADD_USER, user=user.name, role=user.role)
            await accounts.add_user(transaction, user, event)

    await running.gateway.engine.write(add)


async def fill(running: Harness, ices: int, users: int) -> None:
    """Add users, and ICEs of which three in four belong to one of them."""
    await add_users(running, users)
    new = [
        NewIce(f"agent-{number:05}", IceType.NORMAL, f"user-{number % users:05}", {"site": "paris"})
        if number % 4
        else NewIce(f"agent-{number:05}", IceType.CI_CD, None, {"os": "linux"})
        for number in range(ices)
    ]
    for start in range(0, ices, MAX_ISSUED):
        await running.gateway.services.bulk.provision(ADMIN, new[start : start + MAX_ISSUED])


async def measure(ices: int, users: int) -> None:
    """Print the figures of each page."""
    with tempfile.TemporaryDirectory() as folder:
        async with harness(Path(folder)) as running:
            await fill(running, ices, users)
            await has_password(running, "root")
            jar = aiohttp.CookieJar(unsafe=True)  # of an address without a name
            async with aiohttp.ClientSession(cookie_jar=jar) as session:
                browser = Browser(session, running.url)
                await browser.log_in()
                print(f"{ices:,} ICEs, {users:,} users; {ROUNDS} rounds, milliseconds")
                print(f"{'page':<52} {'KiB':>6} {'median':>7} {'worst':>7}")
                for path in PAGES:
                    await _page(browser, path)


async def _page(browser: Browser, path: str) -> None:
    taken, size = [], 0
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        answer = await browser.get(path)
        taken.append(time.perf_counter() - begun)
        if answer.status == 404:
            return
        assert answer.status == 200, f"{path} gave {answer}"
        size = len(answer.body)
    over = size > MAX_BYTES or statistics.median(taken) > MAX_SECONDS
    figures = (
        f"{size / 1024:>6.1f} {1000 * statistics.median(taken):>7.1f} {1000 * max(taken):>7.1f}"
    )
    print(f"{path:<52} {figures}{'  over' if over else ''}")


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ices", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=20_000)
    given = parser.parse_args()
    asyncio.run(measure(given.ices, given.users))


if __name__ == "__main__":
    main()
