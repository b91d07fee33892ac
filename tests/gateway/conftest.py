from __future__ import annotations

import contextlib
import functools

import aiohttp
import argon2
import pytest

from gateway.core.roles import Role
from tests.support.pages import Browser, has_password


@pytest.fixture
def quick_passwords(monkeypatch):
    """Hashes that cost nothing: what they cost is not what is tested here."""
    quick = functools.partial(argon2.PasswordHasher, time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(argon2, "PasswordHasher", quick)


@pytest.fixture
async def browse(quick_passwords):
    """Makes browsers."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(running, name=None, role=Role.ADMIN):
            jar = aiohttp.CookieJar(unsafe=True)
            session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=jar))
            browser = Browser(session, running.url)
            if name is not None:
                await has_password(running, name, role)
                answer = await browser.log_in(name)
                assert answer.status == 303, f"{name} could not log in: {answer}"
            return browser

        yield make


@pytest.fixture
async def root(running, browse):
    """The browser of an admin."""
    return await browse(running, "root")
