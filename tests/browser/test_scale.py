"""The admin's pages before 10,000 ICEs and 20,000 users: what they weigh, how long they take, and what goes wrong meanwhile."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Page, Request, expect

from gateway.store.events import EventFilter
from tests.bench.listing import Fleet
from tests.bench.pages import MAX_BYTES, MAX_SECONDS, add_users
from tests.browser.admin import Admin, choose, dialog, follow, press
from tests.support.harness import Harness, harness
from tests.support.ice import until

pytestmark = pytest.mark.long
ICES = 10_000
USERS = 20_000
CONNECTED = 0.8
LIVE = 20
"""ICEs that are really connected."""
SLOW = {
    "latency": 400,
    "downloadThroughput": 400_000 / 8,
    "uploadThroughput": 400_000 / 8,
}
"""A network of 400 kbit/s, each answer 400 ms late."""
FAST = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def filled(tmp_path_factory) -> Path:
    """The folder of a gateway that has stopped, with a fleet in all statuses, of which nobody is connected."""
    folder: Path = tmp_path_factory.mktemp("fleet")
    async with harness(folder) as running:
        await running.provision("zebra")  # makes the key that seals tokens
        await add_users(running, USERS)
        await Fleet(running.gateway.engine, ICES - 1, connected=0).fill()
    return folder


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def running(filled: Path, tmp_path_factory) -> AsyncIterator[Harness]:
    """One gateway for all tests here; most of its fleet is connected."""
    folder = tmp_path_factory.mktemp("running") / "fleet"
    shutil.copytree(filled, folder)
    async with harness(folder) as started:
        fleet = Fleet(started.gateway.engine, ICES - 1, CONNECTED)
        numbers = range(fleet.count)
        await fleet.admit([n for n in numbers if fleet.is_registered(n) and fleet.stays(n)])
        yield started


@dataclass
class Ledger:
    """What a page has asked the gateway for: the size of each answer, and the time until it began."""

    page: Page
    requests: list[Request] = field(default_factory=list)
    open: set[Request] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", self._began)
        self.page.on("requestfinished", self._finished)
        self.page.on("requestfailed", self._failed)

    def _began(self, request: Request) -> None:
        if request.resource_type in (
            "document",
            "xhr",
        ):  # not the script of a worker, or its stream
            self.open.add(request)

    def _finished(self, request: Request) -> None:
        self.open.discard(request)
        self.requests.append(request)

    def _failed(self, request: Request) -> None:
        self.open.discard(request)
        if request.failure != "net::ERR_ABORTED":  # what was typed meanwhile replaces a request
            self.failed.append(f"{request.url}: {request.failure}")

    async def settle(self, step: str) -> None:
        """Wait until nothing is under way; print what `step` cost. No answer may be an error or too large."""
        await until(lambda: not self.open)
        requests, self.requests = self.requests, []
        for request in requests:
            response = await request.response()
            if response is None or request.resource_type not in ("document", "xhr"):
                continue
            size, timing = (await request.sizes())["responseBodySize"], request.timing
            took = (timing["responseStart"] - timing["requestStart"]) / 1000
            path = request.url.partition("/admin/")[2]
            over = "  over" if took > MAX_SECONDS else ""
            print(f"{step:<28} {path:<64} {size / 1024:>6.1f} KiB {1000 * took:>6.0f} ms{over}")  # noqa: T201
            assert response.ok, f"{path} gave {response.status}"
            assert size <= MAX_BYTES, f"{path} has {size} bytes"
        assert self.failed == []


async def test_every_page_is_light_and_without_a_fault(admin, running):
    page = await admin.open()
    ledger = Ledger(page)
    await page.reload()
    await expect(page.locator("tbody tr")).to_have_count(50)
    await ledger.settle("first page")
    search = page.get_by_label("Search ICEs")
    await search.press_sequentially("agent-00777", delay=30)
    await expect(page.locator("tbody tr")).to_have_count(10)
    await ledger.settle("search")
    await search.fill("")
    await expect(page.locator("tbody tr")).to_have_count(50)
    await ledger.settle("search cleared")
    counters = page.get_by_role("navigation", name="ICEs by condition").get_by_role("link")
    for place in range(await counters.count()):
        counter = counters.nth(place)
        name = (await counter.inner_text()).replace("\n", " ")
        number = int(re.sub(r"\D", "", name))
        await counter.click()
        await expect(page.locator("tbody tr")).to_have_count(min(50, number) or 1)
        await ledger.settle(name)
    await page.goto(f"{running.url}/admin/")
    for by in ("Type", "User", "Status", "Connection", "Version", "Provisioned", "Name"):
        for direction in ("ascending", "descending"):
            await page.get_by_role("link", name=by, exact=True).click()
            await expect(page.get_by_role("columnheader", name=by, exact=True)).to_have_attribute(
                "aria-sort", direction
            )
            await ledger.settle(f"by {by}, {direction}")
    await page.goto(f"{running.url}/admin/?page=196")
    pages = page.get_by_role("navigation", name="Pages")
    for number in range(197, 201):
        await pages.get_by_role("link", name="Next").click()
        await expect(pages).to_contain_text(f"10,000 ICEs, page {number} of 200")
        await ledger.settle(f"page {number}")
    await expect(pages.get_by_role("link", name="Next")).to_have_count(0)
    await page.goto(f"{running.url}/admin/ices/agent-000123")
    await expect(page.locator(".timeline")).to_be_visible()
    await ledger.settle("one ICE")
    await follow(page, page.get_by_role("link", name="Operations"))
    await page.get_by_label("Requested by").press_sequentially("user-19", delay=30)
    first = page.locator("#known-users option").first
    await expect(first).to_have_attribute("value", re.compile("user-19"))
    await ledger.settle("operations")
    await follow(page, page.get_by_role("link", name="Users"))
    await page.get_by_label("Search user").press_sequentially("user-19", delay=30)
    await expect(page.get_by_role("navigation", name="Pages")).to_contain_text("users, page 1 of")
    await ledger.settle("users")
    await follow(page, page.get_by_role("link", name="Audit log"))
    await expect(page.locator("#verdict")).to_contain_text("verifies", timeout=30_000)
    await page.get_by_label("Actor").fill("root")
    await page.get_by_label("Action").select_option("add-user")
    await expect(page).to_have_url(re.compile("actor=root&action=add-user"))
    await page.locator("#page-older").click()
    await ledger.settle("audit log")


async def choose_matching(page: Page, count: int) -> None:
    """Choose all ICEs that the filter finds."""
    await page.get_by_label("Choose all on this page").check()
    bulk = page.get_by_role("group", name="Chosen ICEs")
    await bulk.get_by_role("button", name=f"Choose all {count:,} that match").click()
    await expect(bulk).to_contain_text(f"{count:,} chosen")


async def deregistered(running: Harness, since: int) -> int:
    """How many deregistrations the audit log has after the event `since`."""
    found = await running.gateway.admin.events.after(
        since, 20_000, EventFilter(action="deregister")
    )
    return len(found)


async def test_all_that_match_are_deregistered(admin, running):
    ices = [await running.provision(f"agent-00-live-{n}", "ci-cd") for n in range(LIVE)]
    connections = [await ice.connect() for ice in ices]
    page = await admin.open("?ice_type=ci-cd&q=agent-00")
    count = 2_500 + LIVE  # one in four, of which one in 25 was never started
    before = await running.gateway.admin.events.last()
    await choose_matching(page, count)
    began = time.perf_counter()
    await page.get_by_role("button", name="Deregister…").click()
    told = dialog(page)
    await expect(told.get_by_role("heading")).to_have_text(f"Deregister 2,420 of {count:,} ICEs?")
    await expect(told).to_contain_text("100: each is provisioned, so it cannot be deregistered")
    print(f"asked about {count}: {time.perf_counter() - began:.2f} s")  # noqa: T201
    await told.get_by_label("Type 2420 to confirm").fill("2420")
    began = time.perf_counter()
    await told.get_by_role("button", name="Deregister", exact=True).dblclick()
    await expect(told.get_by_role("heading")).to_have_text(
        f"Deregister: 2,420 of {count:,} done", timeout=30_000
    )
    print(f"deregistered 2420: {time.perf_counter() - began:.2f} s")  # noqa: T201
    await expect(told).to_contain_text(f"{LIVE} sessions dropped")
    for connection in connections:
        await connection.expect_dropped(4101)
    await press(page, "Ok")
    assert await deregistered(running, before) == 2_420


async def network(page: Page, conditions: dict[str, float]) -> None:
    """Give a page a network such as `SLOW`."""
    session = await page.context.new_cdp_session(page)
    await session.send("Network.enable")
    await session.send("Network.emulateNetworkConditions", {"offline": False, **conditions})


async def test_a_slow_network_shows_what_is_under_way_and_does_it_once(admin, running):
    page = await admin.context.new_page()
    await network(page, SLOW)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(f"{request.method} {request.url}"))
    began = time.perf_counter()
    await page.goto(f"{running.url}/admin/")
    await expect(page.locator("tbody tr")).to_have_count(50)
    await expect(page.locator("#freshness")).to_have_text("Live")
    print(f"the list: {time.perf_counter() - began:.2f} s")  # noqa: T201
    began = time.perf_counter()
    search, table = page.get_by_label("Search ICEs"), page.locator("#table")
    await search.press_sequentially("agent-00")
    await expect(table).to_have_attribute("aria-busy", "true")
    await search.press_sequentially("7779")
    await expect(page.locator("tbody tr")).to_have_count(1)
    await expect(table).to_have_attribute("aria-busy", "false")
    print(f"the filter: {time.perf_counter() - began:.2f} s")  # noqa: T201
    # A question is asked once.
    asked.clear()
    button = page.locator("#reregister-agent-007779, #deregister-agent-007779").first
    name = (await button.inner_text()).strip()
    await button.dblclick()
    await expect(button).to_have_attribute("aria-busy", "true")
    told = dialog(page)
    await expect(told.get_by_role("heading")).to_have_text(f"{name} agent-007779?")
    await expect(button).not_to_have_attribute("aria-busy", "true")
    await press(page, "Cancel")
    assert len([one for one in asked if "/ices/" in one]) == 1
    before = await running.gateway.admin.events.last()
    await choose(page, "agent-007779", "Deregister")
    confirm = told.get_by_role("button", name="Deregister", exact=True)
    began = time.perf_counter()
    await confirm.dblclick()
    await expect(confirm).to_be_disabled()
    await expect(told.get_by_role("heading")).to_have_text("agent-007779 deregistered")
    print(f"the action: {time.perf_counter() - began:.2f} s")  # noqa: T201
    await press(page, "Ok")
    assert len([one for one in asked if one.startswith("POST")]) == 1
    assert await deregistered(running, before) == 1
    # All that match, and a file.
    await search.fill("agent-0077")
    await expect(page.locator("tbody tr")).to_have_count(50)
    await page.get_by_label("Choose all on this page").check()
    matching = page.get_by_role("button", name="Choose all 100 that match")
    await matching.dblclick()
    await expect(matching).to_have_attribute("aria-busy", "true")
    await expect(page.get_by_text("100 chosen").first).to_be_visible()
    assert len([one for one in asked if "/ice-names" in one]) == 1
    await page.get_by_role("button", name="Clear", exact=True).click()
    await page.locator("[data-open-provision]").click()
    file = "ice_name,ice_type\n" + "".join(f"slow-{number},ci-cd\n" for number in range(50))
    await page.locator("#fleet-file").set_input_files(
        {"name": "fleet.csv", "mimeType": "text/csv", "buffer": file.encode()}
    )
    await expect(page.locator("label:has(#fleet-file)")).to_have_attribute("aria-busy", "true")
    await expect(told.get_by_role("heading")).to_have_text("Provision 50 ICEs?")
    await told.get_by_role("button", name="Provision", exact=True).dblclick()
    await expect(told.get_by_role("heading")).to_have_text("50 ICEs provisioned")
    await press(page, "Ok")
    await told.locator("[data-ask]").click()
    await told.locator("[data-close]:visible").click()
    await network(page, FAST)
    await expect(page.locator("#table.htmx-request")).to_have_count(0)


async def test_a_restart_keeps_the_filter_and_the_choice(browser, filled, tmp_path):
    folder = tmp_path / "fleet"
    shutil.copytree(filled, folder)
    context = await browser.new_context()
    async with harness(folder) as running:
        admin = Admin(context, running)
        admin.may_be_cut_off = True
        await admin.log_in()
        page = await admin.open("?status=registered")
        await page.get_by_label("Search ICEs").fill("agent-0066")
        await expect(page.locator("tbody tr")).to_have_count(50)
        pages = page.get_by_role("navigation", name="Pages")
        await expect(pages).to_contain_text("97 ICEs, page 1 of 2")
        for name in ("agent-006602", "agent-006603"):
            await page.get_by_label(f"Choose {name}").check()
        address = page.url
        port = int(running.url.rpartition(":")[2])
    freshness = page.locator("#freshness")
    await expect(freshness).to_have_text(
        re.compile(r"^Connection lost, as of \d\d:\d\d:\d\d, trying again$")
    )
    await expect(page.locator("[data-chosen]")).to_have_text("2 chosen")
    async with harness(folder, server__port=port) as running:
        await expect(freshness).to_have_text("Live", timeout=30_000)
        assert page.url == address
        await expect(page.get_by_label("Search ICEs")).to_have_value("agent-0066")
        await expect(pages).to_contain_text("97 ICEs, page 1 of 2")
        await expect(page.locator("[data-chosen]")).to_have_text("2 chosen")
        await expect(page.get_by_label("Choose agent-006603")).to_be_checked()
        await page.get_by_role("button", name="Deregister…").click()
        await press(page, "Deregister")
        await expect(dialog(page).get_by_role("heading")).to_have_text("Deregister: 2 of 2 done")
        await press(page, "Ok")
        await expect(page.get_by_label("Choose agent-006602")).to_have_count(0)
    assert admin.faults == []
    await context.close()
