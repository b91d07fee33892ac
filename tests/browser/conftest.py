"""Chromium once, a gateway for each test, all in one loop.

Tests share one browser profile, without its cookies; each gateway has a port, and so an origin, of its own.

Without Chromium the tests are skipped and say so; where it has to be there (CI, or
ICE_REQUIRE_BROWSER=1) they fail.
"""

from __future__ import annotations

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.browser.admin import Admin, chromium, require_chromium
from tests.support.harness import harness, marked

USUAL = {"locale": "en-GB", "timezone_id": "Asia/Tokyo", "reduced_motion": "reduce"}
"""The viewer does not sit in UTC."""

expect.set_options(timeout=8000)


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "own_profile: changes what a browser profile keeps: scripts, the clock"
    )


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


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def profile(browser):
    """The profile that tests share: to make one takes as long as to load a page.

    The page that stays open in it keeps the process that renders pages of its host.
    """
    context = await browser.new_context(**USUAL)
    context.set_default_timeout(8000)
    kept = await context.new_page()
    await kept.route("**", lambda route: route.fulfill(body="", content_type="text/html"))
    await kept.goto("http://127.0.0.1/")
    yield context
    await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def running(tmp_path, request):
    """A gateway with an admin `root` and a member `alice`."""
    async with harness(tmp_path, **marked(request)) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="session")
async def new_admin(browser, profile, running):
    """Makes admins; none may meet a fault.

    The first without options has the shared profile, unless `own_profile`; the others each have one of their own.
    """
    admins = []

    async def make(user="root", *, own_profile=False, **options):
        own_profile = own_profile or options or any(each.context is profile for each in admins)
        context = await browser.new_context(**(USUAL | options)) if own_profile else profile
        context.set_default_timeout(8000)
        admin = Admin(context, running)
        admins.append(admin)
        if user is not None:
            await admin.log_in(user)
        return admin

    yield make
    for admin in admins:
        admin.leave()
        if admin.context is profile:
            for page in profile.pages[1:]:
                await page.close()
            await profile.clear_cookies()
            await profile.clear_permissions()
            await profile.set_offline(offline=False)
        else:
            await admin.context.close()
    assert [fault for admin in admins for fault in admin.faults] == []


@pytest_asyncio.fixture(loop_scope="session")
async def admin(new_admin, request):
    """The admin `root`, logged in; in a profile of their own for a test with the mark `own_profile`."""
    marked = request.node.get_closest_marker("own_profile")
    return await new_admin(own_profile=marked is not None)


@pytest_asyncio.fixture(loop_scope="session")
async def page(admin):
    """ICE Provisioning, before `root`."""
    return await admin.open()
