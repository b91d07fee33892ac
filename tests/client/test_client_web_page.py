"""The example for `scrape`: the interactive elements of a page, their roles, names and selectors."""

import asyncio
import json

import pytest
from aiohttp import web
from playwright.async_api import async_playwright

from client.examples import web_page
from client.handlers import BadHandlers
from client.operations import OperationFailed
from tests.browser.admin import ARGUMENTS, CHROMIUM, require_chromium
from tests.client.played import Played, Registry, alive
from tests.support.ice import until

FORM = """<!doctype html><title>Log in</title>
<form>
  <label>Name <input name="name"></label>
  <label>Password <input type="password" data-testid="pw" id="x" value="hunter2"></label>
  <label><input type="checkbox" id="keep"> Keep me</label>
  <label>Since <input type="date" id=":r1:"></label>
  <select aria-label="Land"><option>DE<option>FR</select>
  <label><input type="radio" name="n" value="1">One</label>
  <label><input type="radio" name="n" value='a"b'>Two</label>
  <button>Log in</button>
</form>
<details><summary>More</summary></details>
<p><a href="/help">Help</a> <a>no link</a> <button hidden>hidden</button></p>
<ul><li><button>Same</button></li><li><button>Same</button></li></ul>
<div role="switch" tabindex="0">Dark</div>
<my-part></my-part><closed-part></closed-part>
<video controls></video>
<script>
  for (const [name, mode] of [["my-part", "open"], ["closed-part", "closed"]])
    document.querySelector(name).attachShadow({mode}).innerHTML = `<button id="in">${mode}</button>`;
  document.querySelectorAll = () => { throw new Error("a trap of the page"); };
</script>
"""
EXPECTED = [
    ("textbox", "Name", 'input[name="name"]'),
    ("textbox", "Password", '[data-testid="pw"]'),
    ("checkbox", "Keep me", "#keep"),
    ("textbox", "Since", 'input[type="date"]'),
    ("combobox", "Land", 'select[aria-label="Land"]'),
    ("radio", "One", 'input[value="1"]'),
    ("radio", "Two", 'input[value="a\\"b"]'),
    ("button", "Log in", "form > button"),
    ("button", "More", "body > details > summary"),
    ("link", "Help", 'a[href="/help"]'),
    ("button", "Same", "body > ul > li:nth-of-type(1) > button"),
    ("button", "Same", "body > ul > li:nth-of-type(2) > button"),
    ("switch", "Dark", 'div[role="switch"]'),
    ("button", "open", "my-part >> #in"),
]


@pytest.fixture
async def site(aiohttp_server):
    """A web site; `site.waiting` is set while a request of `/slow` waits."""
    waiting = asyncio.Event()

    async def slow(request):
        waiting.set()
        await asyncio.Event().wait()

    async def late(request):
        script = "setTimeout(() => document.body.innerHTML = '<button>Late</button>', 300)"
        return page(f"<body><script>fetch('/form').then(() => {script})</script>")

    def page(html, status=200):
        return web.Response(text=html, content_type="text/html", status=status)

    def fixed(html, status=200):
        async def handler(request):
            return page(html, status)

        return handler

    async def redirect(request):
        raise web.HTTPFound(request.query["to"])

    many = "".join(f"<button>{number} {'é' * 500}</button>" for number in range(1100))
    app = web.Application()
    app.add_routes(
        [
            web.get("/form", fixed(FORM)),
            web.get("/missing", fixed("<a href='/'>home</a>", 404)),
            web.get("/many", fixed(many)),
            web.get("/huge", fixed("<i></i>" * 50_001)),
            web.get("/late", late),
            web.get("/slow", slow),
            web.get("/redirect", redirect),
        ]
    )
    server = await aiohttp_server(app, shutdown_timeout=0)
    server.waiting = waiting
    return server


@pytest.fixture
def play():
    """The handler with these settings."""
    require_chromium()

    def play(**settings):
        settings = {"chromium": str(CHROMIUM), "sandbox": False} | settings
        return Played(web_page.register, {"scrape": settings})

    return play


@pytest.fixture
def scrape(play, site):
    """Scrape a page of the site."""
    played = play()
    assert played.kinds == {"scrape"}

    async def scrape(path):
        return await played({"url": str(site.make_url(path))}, "scrape")

    scrape.played = played
    return scrape


async def test_the_interactive_elements_of_a_page(scrape, site):
    result = await scrape("/redirect?to=/form")
    elements = result.pop("elements")
    url = str(site.make_url("/form"))
    assert result == {"url": url, "status": 200, "title": "Log in", "truncated": False}
    assert [(one["role"], one["name"], one["selector"]) for one in elements] == EXPECTED
    assert "hunter2" not in json.dumps(elements)
    assert scrape.played.reports[-1] == (0.6, "reading the page")


@pytest.mark.long
async def test_each_selector_finds_one_element(site):
    require_chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = await browser.new_page()
        await page.goto(str(site.make_url("/form")))
        for _, _, selector in EXPECTED:
            assert await page.locator(selector).count() == 1, selector
        await browser.close()


@pytest.mark.long
async def test_elements_and_names_are_bounded(scrape):
    result = await scrape("/many")
    assert len(result["elements"]) == 1000
    assert result["truncated"]
    assert len(json.dumps(result, ensure_ascii=False).encode()) < 1_000_000
    assert {len(one["name"]) for one in result["elements"]} == {200}
    assert result["elements"][-1]["selector"] == "body > button:nth-of-type(1000)"


@pytest.mark.long
async def test_what_scripts_add_is_there_and_a_status_is_no_failure(scrape):
    assert (await scrape("/late"))["elements"][0]["name"] == "Late"
    result = await scrape("/missing")
    assert (result["status"], len(result["elements"])) == (404, 1)


@pytest.mark.long
async def test_a_page_that_is_too_large_is_refused(scrape):
    with pytest.raises(OperationFailed, match="50,000 elements") as failed:
        await scrape("/huge")
    assert failed.value.code == "too-large"


async def test_a_page_that_cannot_be_loaded(scrape):
    with pytest.raises(OperationFailed, match="ERR_") as failed:
        await scrape("/redirect?to=file:///etc/passwd")
    assert failed.value.code == "not-loaded"
    assert "\n" not in str(failed.value)


@pytest.mark.long
async def test_time_is_bounded(play, site):
    with pytest.raises(OperationFailed, match=r"not ready after 1 s") as failed:
        await play(timeout=1)({"url": str(site.make_url("/slow"))}, "scrape")
    assert failed.value.code == "timeout"


async def test_cancelling_ends_the_browser(play, site, tmp_path, monkeypatch):
    starter, pid = tmp_path / "chromium", tmp_path / "pid"
    starter.write_text(f'#!/bin/sh\necho $$ > "{pid}"\nexec {CHROMIUM} "$@"\n')
    starter.chmod(0o700)
    played = play(chromium=str(starter))
    url = str(site.make_url("/slow"))
    running = asyncio.create_task(played({"url": url}, "scrape"))
    await asyncio.wait_for(site.waiting.wait(), 20)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: not alive(int(pid.read_text())))


@pytest.mark.parametrize(
    "params",
    [
        None,
        "https://example.org/",
        {},
        {"url": 7},
        {"url": "https://example.org/", "more": 1},
        {"url": "example.org"},
        {"url": "file:///etc/passwd"},
        {"url": "chrome://version"},
        {"url": "javascript:alert(1)"},
        {"url": "data:text/html,x"},
        {"url": "view-source:http://example.org/"},
        {"url": "http://"},
        {"url": "http://[::1"},
        {"url": "http://example.org:99999/"},
        {"url": "http://ada:secret@example.org/"},
        {"url": "http://example.org/ "},
        {"url": "http://exam\nple.org/"},
        {"url": "http://example.org/" + "x" * 2000},
    ],
)
async def test_only_web_pages_are_opened(params, monkeypatch):
    played = Played(web_page.register, {})
    with pytest.raises(OperationFailed) as failed:
        await played(params, "scrape")
    assert failed.value.code == "bad-params"
    assert "secret" not in str(failed.value)


async def test_a_browser_that_does_not_start(tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho No usable sandbox! >&2; exit 1\n")
    broken.chmod(0o700)
    played = Played(web_page.register, {"scrape": {"chromium": str(broken)}})
    with pytest.raises(OperationFailed, match="cannot have a sandbox here") as failed:
        await played({"url": "http://127.0.0.1:1/"}, "scrape")
    assert failed.value.code == "not-run"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("chromium", "not valid"),
        ({"chromium": 5}, "not valid"),
        ({"chrome": "/usr/bin/chromium"}, "not valid"),
        ({"sandbox": "no"}, "not valid"),
        ({"chromium": "chromium"}, "absolute path"),
        ({"chromium": "/no/such/program"}, "absolute path"),
        ({"timeout": 0}, "at most 300"),
        ({"timeout": 301}, "at most 300"),
        ({"timeout": float("nan")}, "at most 300"),
    ],
)
def test_settings_are_checked(table, says):
    with pytest.raises(BadHandlers, match=says):
        web_page.register(Registry(), {"scrape": table})


def test_without_the_extra_it_says_so_before_it_starts(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadHandlers, match=r"pip install 'ice-gateway\[scrape\]'"):
        web_page.register(Registry(), {})
