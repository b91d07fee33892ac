"""A handler for `scrape` that opens a web page in Chromium and returns its interactive elements.

    pip install 'ice-gateway[scrape]' && playwright install chromium
    ice-client run --gateway URL --handlers client.examples.web_page [--config ice-client.toml]

    [scrape]                        # all optional
    chromium = "/usr/bin/chromium"  # instead of playwright's own
    sandbox = false                 # where Chromium cannot have one, as for root
    timeout = 30                    # seconds for a page

An operation's params are `{"url": "https://example.org/"}`. The result has `url`, `status` and `title` of the page where
the browser arrived, and its `elements` in the order of the page, each with its role and name, as screen readers
have them, and a selector: CSS, as `document.querySelector` and playwright take it. `truncated` says whether there were
more. The page sees a new browser profile, and the network as this machine sees it.

Tested in tests/client/test_client_web_page.py.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from client import platform
from client.agent import IceClient
from client.errors import one_line
from client.handlers import BadHandlers, Settings
from client.operations import Operation, OperationFailed, Report

if TYPE_CHECKING:
    from playwright.async_api import CDPSession, Page

MAX_ELEMENTS: Final = 1000
"""Elements of a result."""
MAX_BYTES: Final = 900_000
"""Bytes of the elements as JSON."""
MAX_NODES: Final = 50_000
"""Elements of a page, interactive or not; a page with more is refused."""
MAX_HTML: Final = 20_000_000
"""Characters of a page's HTML; a page with more is refused."""
_MAX_URL: Final = 2000
_MAX_TEXT: Final = 200
"""Characters of a name, and of the title."""
_QUIET: Final = 3.0
"""Seconds at most for a loaded page to come to rest, since many are filled by scripts."""
_CLOSE_TIMEOUT: Final = 2.0
_MAX_TIMEOUT: Final = 300
_MAX_FOUND: Final = 3 * MAX_ELEMENTS
"""Interactive elements that are looked at; some have no selector, such as the options of a `select`."""
_FITS: Final = (
    f"document.getElementsByTagName('*').length <= {MAX_NODES}"
    f" && document.documentElement.outerHTML.length <= {MAX_HTML}"
)
_SELECTORS: Final = Path(__file__).with_name("web_page.js")

# Roles of WAI-ARIA that a person can operate, and Chromium's own names for further controls.
_ROLES: Final[Mapping[str, str]] = {
    **{role: role for role in ("button", "checkbox", "combobox", "link", "listbox", "menuitem")},
    **{role: role for role in ("menuitemcheckbox", "menuitemradio", "option", "radio", "tab")},
    **{role: role for role in ("searchbox", "slider", "spinbutton", "switch", "textbox")},
    "treeitem": "treeitem",
    "DisclosureTriangle": "button",
    **dict.fromkeys(("Date", "DateTime", "InputTime", "ColorWell"), "textbox"),
}


class _Browser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `scrape` of the settings; `timeout` in seconds."""

    chromium: str | None = None
    sandbox: bool = True
    timeout: float = 30.0


def register(ice: IceClient, settings: Settings) -> None:
    """Add the handler. Raises `BadHandlers`."""
    if importlib.util.find_spec("playwright") is None:
        raise BadHandlers(
            "playwright is not installed (python -m pip install 'ice-gateway[scrape]', then python -m"
            f" playwright install chromium, for {sys.executable})"
        )
    browser = _browser_of(settings.get("scrape", {}))

    async def scrape(operation: Operation, report: Report) -> dict[str, Any]:
        url = _url_of(operation.params)
        try:
            async with asyncio.timeout(browser.timeout):
                return await _scrape(operation, report, url, browser)
        except TimeoutError:
            sentence = f"the page was not ready after {browser.timeout:g} s"
            raise OperationFailed("timeout", sentence) from None
        finally:
            platform.end_processes_of([operation.id])

    ice.operation("scrape")(scrape)


def _browser_of(table: object) -> _Browser:
    try:
        browser = msgspec.convert(table, _Browser)
    except msgspec.ValidationError as error:
        raise BadHandlers(f"the settings in [scrape] are not valid: {error}") from None
    path = Path(browser.chromium or sys.executable)
    if not (path.is_absolute() and path.is_file()):
        raise BadHandlers("scrape.chromium must be the absolute path of a program")
    if not 0 < browser.timeout <= _MAX_TIMEOUT:
        raise BadHandlers(f"scrape.timeout must be at most {_MAX_TIMEOUT} seconds")
    return browser


def _url_of(params: object) -> str:
    """The URL in `params`; other schemes would open files of this machine."""
    if not isinstance(params, Mapping) or set(params) != {"url"}:
        raise OperationFailed("bad-params", 'params must be {"url": URL}')
    url = params["url"]
    if not isinstance(url, str) or len(url) > _MAX_URL or not url.isprintable() or " " in url:
        raise OperationFailed("bad-params", f"url must be a URL of at most {_MAX_URL:,} characters")
    if not _is_web(url):
        raise OperationFailed("bad-params", "url must begin with http:// or https:// and a host")
    if "@" in urlsplit(url).netloc:
        raise OperationFailed("bad-params", "url must not have a user or a password")
    return url


def _is_web(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


async def _scrape(
    operation: Operation, report: Report, url: str, browser: _Browser
) -> dict[str, Any]:
    from playwright.async_api import Error  # noqa: PLC0415 - an extra

    await report(0.0, "starting Chromium")
    async with _new_page(operation, browser) as page:
        await report(0.2, "opening the page")
        try:
            response = await page.goto(url)
            await _rest(page)
            if response is None or not _is_web(page.url):
                raise OperationFailed("not-loaded", "the browser did not arrive at a web page")
            await report(0.6, "reading the page")
            title = (await page.title())[:_MAX_TEXT]
            elements, truncated = await _elements(await page.context.new_cdp_session(page))
        except Error as error:
            raise OperationFailed("not-loaded", _first_line(error)) from None
        return {
            "url": page.url[:_MAX_URL],
            "status": response.status,
            "title": title,
            "elements": elements,
            "truncated": truncated,
        }


@asynccontextmanager
async def _new_page(operation: Operation, browser: _Browser) -> AsyncIterator[Page]:
    """A page in a new profile of a new Chromium, which is gone afterwards."""
    from playwright.async_api import Error, async_playwright  # noqa: PLC0415 - an extra

    async with async_playwright() as playwright:
        try:
            chromium = await playwright.chromium.launch(
                executable_path=browser.chromium,
                chromium_sandbox=browser.sandbox,
                env={**platform.environment(operation.id)},
            )
        except Error as error:
            reason = _first_line(error)
            if "sandbox" in str(error):
                reason = "it cannot have a sandbox here; see `sandbox` in the settings"
            elif "Executable doesn't exist" in reason and browser.chromium is None:
                reason = (
                    "playwright has none; run `playwright install chromium`,"
                    " or name one as `chromium` in [scrape]"
                )
            raise OperationFailed("not-run", f"Chromium cannot be started: {reason}") from None
        try:
            context = await chromium.new_context(accept_downloads=False, service_workers="block")
            context.set_default_timeout(0)  # the operation has one
            yield await context.new_page()
        finally:
            with suppress(TimeoutError):  # the handler kills what does not end
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await chromium.close()


async def _rest(page: Page) -> None:
    """Wait until nothing is loaded any more, for `_QUIET` seconds at most."""
    with suppress(TimeoutError):  # such as a page that polls
        async with asyncio.timeout(_QUIET):
            await page.wait_for_load_state("networkidle")


async def _elements(cdp: CDPSession) -> tuple[list[dict[str, str]], bool]:
    """The interactive elements, and whether there are more."""
    frame = (await cdp.send("Page.getFrameTree"))["frameTree"]["frame"]["id"]
    # Scripts of the page cannot change what code in a world of its own calls.
    world = await cdp.send("Page.createIsolatedWorld", {"frameId": frame})
    context = world["executionContextId"]
    size = await cdp.send("Runtime.evaluate", {"expression": _FITS, "contextId": context})
    if size["result"]["value"] is not True:
        sentence = f"the page has more than {MAX_NODES:,} elements or {MAX_HTML:,} characters"
        raise OperationFailed("too-large", sentence)
    nodes = _in_order((await cdp.send("Accessibility.getFullAXTree"))["nodes"])
    interactive = [node for node in nodes if _is_interactive(node)]
    found = interactive[:_MAX_FOUND]
    selectors = await _selectors(cdp, found, context)
    elements: list[dict[str, str]] = []
    left = MAX_BYTES
    for node, selector in zip(found, selectors, strict=True):
        if selector is not None:
            name = " ".join(str(node.get("name", {}).get("value", "")).split())[:_MAX_TEXT]
            element = {"role": _ROLES[node["role"]["value"]], "name": name, "selector": selector}
            left -= len(msgspec.json.encode(element)) + 1
            if len(elements) == MAX_ELEMENTS or left < 0:
                return elements, True
            elements.append(element)
    return elements, len(interactive) > len(found)


def _is_interactive(node: dict[str, Any]) -> bool:
    return not node["ignored"] and node["role"]["value"] in _ROLES and "backendDOMNodeId" in node


def _in_order(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The nodes of the tree in the order of the page; Chromium gives them level by level."""
    by_id = {node["nodeId"]: node for node in nodes}
    stack, ordered = [nodes[0]["nodeId"]] if nodes else [], []
    while stack:
        node = by_id.pop(stack.pop(), None)
        if node is not None:
            ordered.append(node)
            stack.extend(reversed(node.get("childIds", [])))
    return ordered


async def _selectors(
    cdp: CDPSession, nodes: list[dict[str, Any]], context: int
) -> list[str | None]:
    """A selector for each node; None where there is none."""
    from playwright.async_api import Error  # noqa: PLC0415 - an extra

    objects = []
    for node in nodes:
        params = {"backendNodeId": node["backendDOMNodeId"], "executionContextId": context}
        try:
            resolved = await cdp.send("DOM.resolveNode", params)
            objects.append({"objectId": resolved["object"]["objectId"]})
        except Error:  # a script has removed it
            objects.append({"value": None})
    answer = await cdp.send(
        "Runtime.callFunctionOn",
        {
            "functionDeclaration": await asyncio.to_thread(_SELECTORS.read_text, "utf-8"),
            "arguments": objects,
            "executionContextId": context,
            "returnByValue": True,
        },
    )
    if "exceptionDetails" in answer:
        raise OperationFailed("failed", "the selectors cannot be made")
    selectors: list[str | None] = answer["result"]["value"]
    return selectors


def _first_line(error: Exception) -> str:
    """The first line of an error of playwright, which may add a log of the browser."""
    return one_line(str(error).strip().partition("\n")[0])
