"""Chromium once, a gateway and a browser profile for each test, all in one loop.

Without Chromium the tests are skipped and say so; where it has to be there (CI, or
ICE_REQUIRE_BROWSER=1) they fail.
"""

from __future__ import annotations

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.browser.admin import Admin, chromium, require_chromium
from tests.support.harness import harness, marked

ZONE = "Asia/Tokyo"
"""Where the viewer sits: not in UTC."""

expect.set_options(timeout=8000)


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/browser/" in item.path.as_posix():
            # The browser speaks to the loop that launched it.
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def browser():
    require_chromium()
    async with chromium() as launched:
        yield launched


@pytest_asyncio.fixture(loop_scope="session")
async def running(tmp_path, request):
    """A gateway with an admin `root` and a member `alice`."""
    async with harness(tmp_path, **marked(request)) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="session")
async def new_admin(browser, running):
    """Makes admins, each in a browser profile of their own; none may meet a fault."""
    admins = []

    async def make(user="root", **options):
        options = {
            "locale": "en-GB",
            "timezone_id": ZONE,
            "reduced_motion": "reduce",
            **options,
        }
        context = await browser.new_context(**options)
        context.set_default_timeout(8000)
        admin = Admin(context, running)
        admins.append(admin)
        if user is not None:
            await admin.log_in(user)
        return admin

    yield make
    for admin in admins:
        await admin.context.close()
    assert [fault for admin in admins for fault in admin.faults] == []


@pytest_asyncio.fixture(loop_scope="session")
async def admin(new_admin):
    """The admin `root`, logged in."""
    return await new_admin()


@pytest_asyncio.fixture(loop_scope="session")
async def page(admin):
    """ICE Provisioning, before `root`."""
    return await admin.open()
