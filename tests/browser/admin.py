"""An admin in front of a browser: logs in, looks, acts; and what goes wrong meanwhile is noted."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Locator, Page, async_playwright, expect

from gateway.admin.auth import COOKIE, SECURE_COOKIE
from gateway.core.secret import Secret
from gateway.core.times import to_text
from tests.support.harness import ADMIN, Harness

# The build without windows takes half the processor time of the other.
_INSTALLED = [Path("/usr/bin/chromium-headless-shell"), Path("/usr/bin/chromium")]
CHROMIUM = Path(
    os.environ.get("CHROMIUM")
    or next((path for path in _INSTALLED if path.exists()), _INSTALLED[0])
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # Nothing asks another host; what tried to would be told of on the console.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
_AXE = Axe().axe_script
PASSWORD = "correct horse battery staple"
LIVE = "[data-live][hx-get]"
"""A part of a page that renews itself."""
_REPLACED = ("htmx:sendAbort", "htmx:afterRequest")
"""What htmx says of a request that a newer one of the same form has replaced."""
_CUT_OFF = re.compile(r"net::ERR_(?!NAME_NOT_RESOLVED)|htmx:sendError")
_FAILED_LOAD = re.compile(r"Failed to load resource: .* status of (\d+)")


def require_chromium():
    """Skip a test where there is no Chromium, or fail it where it has to be there."""
    if CHROMIUM.exists():
        return
    missing = (
        f"there is no {CHROMIUM} (Debian: apt install chromium-headless-shell; or set CHROMIUM)"
    )
    if os.environ.get("CI") or os.environ.get("ICE_REQUIRE_BROWSER") == "1":
        pytest.fail(missing)
    pytest.skip(missing)


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Debian's Chromium."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


class Admin:
    """A browser profile with one gateway's pages.

    `faults` is what no test lets pass: whatever the console complains of (requests to other hosts,
    too), and errors of scripts. The browser's own line about an answer is none if its status is in `expected`;
    what htmx and the browser say of a request without an answer is none once `may_be_cut_off`.
    """

    def __init__(self, context: BrowserContext, running: Harness) -> None:
        self.context = context
        self.running = running
        self.faults: list[str] = []
        self.expected: set[int] = set()
        self.may_be_cut_off = False
        context.on("weberror", lambda raised: self.faults.append(f"page error: {raised.error}"))
        context.on("console", self._console)

    def _console(self, message: Any) -> None:
        load = _FAILED_LOAD.match(message.text)
        if message.type not in ("error", "warning") or (load and int(load[1]) in self.expected):
            return
        if message.text.startswith(_REPLACED):
            return
        if not (self.may_be_cut_off and _CUT_OFF.search(message.text)):
            self.faults.append(f"console {message.type}: {message.text} ({message.location})")

    async def log_in(self, user: str = "root") -> None:
        """A login without the page; how the page does it is one test's matter."""
        cookie = Secret(secrets.token_urlsafe(32))
        now = to_text(self.running.clock())
        await self._sql(
            "INSERT INTO logins (token_hash, user_name, address, createdon, seenon)"
            " VALUES ($1, $2, '127.0.0.1', $3, $3)",
            cookie.digest(),
            user,
            now,
        )
        # As the browser has it of an https page; it sends such a cookie to 127.0.0.1 by http, too.
        urls = self.running.gateway.settings.server_public_url
        secure = any(url.startswith("https:") for url in urls)
        name = SECURE_COOKIE if secure else COOKIE
        url = self.running.url.replace("http:", "https:") if secure else self.running.url
        await self.context.add_cookies(
            [{"name": name, "value": cookie.reveal(), "url": url, "sameSite": "Strict"}]
        )

    async def end_logins(self, user: str = "root") -> None:
        """As when their time is over: nothing says so."""
        await self._sql("DELETE FROM logins WHERE user_name = $1", user)

    async def _sql(self, text: str, *values: Any) -> None:
        await self.running.gateway.engine.write(lambda transaction: transaction.run(text, *values))

    async def open(self, address: str = "") -> Page:
        """A page of the gateway in a new tab; where it is live, it listens already."""
        page = await self.context.new_page()
        await page.goto(f"{self.running.url}/admin/{address}")
        if await page.locator("#freshness").count() and await page.locator(LIVE).count():
            await expect(page.locator("#freshness[data-state=live]")).to_be_attached()
        return page


async def violations(page: Page, part: str | None = None) -> str:
    """What axe finds wrong in a page, or in a part of it, with the elements; empty if nothing.

    The script stays in the page; what holds is not read: it is most of the answer.
    """
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(_AXE)
    found = await page.evaluate(
        "part => axe.run(part || document, {resultTypes: ['violations']}).then(told => told.violations)",
        part,
    )
    return "\n".join(
        f"{rule['id']} ({rule['helpUrl']}): {node['html']}: {node['failureSummary']}"
        for rule in found
        for node in rule["nodes"]
    )


async def hide(page: Page, *, hidden: bool = True) -> None:
    """Let a tab say that it is hidden; Playwright's tabs all say that they are visible."""
    await page.evaluate(
        """hidden => {
          Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


async def follow(page: Page, link: Locator) -> None:
    """Click what leads to another page, and wait for its scripts: a press before they have run is lost."""
    async with page.expect_event("load"):
        await link.click()


def row(page: Page, name: str) -> Locator:
    """The row of an ICE."""
    return page.locator(f'[id="row-{name}"]')


def dialog(page: Page) -> Locator:
    """The dialog that is open."""
    return page.locator("dialog[open]")


async def offered(page: Page, name: str) -> list[str]:
    """The actions that a row offers: its button, and what its menu has besides."""
    button = row(page, name).locator(".actions button:not(.more)")
    await more(page, name).click()
    menu = page.get_by_role("menu")
    actions = (
        await button.all_inner_texts() + await menu.locator("button:visible").all_inner_texts()
    )
    await page.keyboard.press("Escape")
    await expect(menu).to_be_hidden()
    return [action.replace("…", "") for action in actions if action]


def more(page: Page, name: str) -> Locator:
    """The button that opens the menu of a row."""
    return row(page, name).get_by_role("button", name=f"More actions for {name}", exact=True)


async def choose(page: Page, name: str, action: str) -> Locator:
    """Press the button of an action in a row, or its item in the menu; returns the dialog that asks."""
    button = row(page, name).get_by_role("button", name=f"{action} {name}", exact=True)
    await expect(row(page, name)).to_be_visible()
    if not await button.is_visible():
        await more(page, name).click()
        button = page.get_by_role("menuitem", name=f"{action} {name}", exact=True)
    await button.click()
    await expect(dialog(page)).to_be_visible()
    return dialog(page)


async def press(page: Page, name: str) -> None:
    """Press a button of the open dialog."""
    await dialog(page).get_by_role("button", name=name, exact=True).click()


async def close_token(page: Page) -> None:
    """Close the dialog that shows a token, in spite of its warning."""
    await dialog(page).locator("[data-ask]").click()
    await dialog(page).locator("[data-close]").click()
    await expect(dialog(page)).to_have_count(0)


async def fill(page: Page, name: str, user: str | None = "alice") -> None:
    """Fill in the form; without a user it is a CI/CD ICE."""
    await page.evaluate("document.querySelector('[data-open-provision]').click()")
    await page.get_by_role("radio", name="CI/CD" if user is None else "Normal").check()
    await page.get_by_label("ICE name").fill(name)
    if user is not None:
        await page.locator("#provisionedto").fill(user)


async def submit(page: Page) -> None:
    """Press Provision."""
    await page.get_by_role("button", name="Provision", exact=True).click()


async def set_password(running: Harness, user: str = "root") -> None:
    """Let a user log in by the page."""
    await running.gateway.services.accounts.set_password(ADMIN, user, Secret(PASSWORD))


async def enter(page: Page, user: str = "root", password: str = PASSWORD) -> None:
    """Fill the login page in and send it, and wait for the page that answers."""
    await page.get_by_label("Name").fill(user)
    await page.get_by_label("Password").fill(password)
    await follow(page, page.get_by_role("button", name="Log in"))
