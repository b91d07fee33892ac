from __future__ import annotations

import contextlib

import aiohttp
import pytest

from gateway.core.roles import Role
from tests.support.pages import Browser, has_password


@pytest.fixture
async def browse():
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
