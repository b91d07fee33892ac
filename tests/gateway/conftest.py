from __future__ import annotations

import contextlib

import aiohttp
import pytest
import pytest_asyncio

from gateway.core.roles import Role
from tests.support.forks import forks
from tests.support.harness import harness
from tests.support.pages import Browser, has_password


@pytest.fixture(scope="session")
def fork(tmp_path_factory):
    """Starts processes of `ice-gateway`."""
    with forks(tmp_path_factory.mktemp("forks"), "gateway") as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory):
    """A gateway as `running` for all tests of a module that change nothing; they are marked `changes_nothing`."""
    async with harness(tmp_path_factory.mktemp("shared")) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_root(shared):
    """The browser of an admin of that gateway."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        browser = Browser(session, shared.url)
        await has_password(shared, "root", Role.ADMIN)
        assert (await browser.log_in("root")).status == 303
        yield browser


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
