"""Make the pictures of docs/images from a real run: `python -m tests.browser.screenshots`.

The names and the clock are pretended, so that a new run gives nearly the same pictures.
"""

from __future__ import annotations

import asyncio
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, expect

from gateway.core.roles import Role
from gateway.core.times import to_text
from tests.browser.admin import (
    Admin,
    choose,
    chromium,
    close_token,
    dialog,
    fill,
    press,
    row,
    submit,
)
from tests.support.clock import RunningClock
from tests.support.harness import Harness, harness
from tests.support.ice import Connection, Key
from tests.support.machine import ENROLMENTS, KEY, Machine, new_key
from tests.support.work import asked, finished, progress, take

IMAGES = Path(__file__).parents[2] / "docs" / "images"
PUBLIC_URL = "https://ice.example.com"
FLEET = [
    # name, user (None: CI/CD), version, platform, and what has become of it
    ("lab-berlin-1", "alice", "2.4.1", "Windows 11", "connected"),
    ("lab-berlin-2", "alice", "2.4.1", "Windows 11", "connected"),
    ("lab-paris-1", "bruno", "2.3.0", "macOS 15.2", "connected"),
    ("lab-paris-2", "bruno", "2.3.0", "macOS 15.2", "stolen"),
    ("desk-carla", "carla", "2.4.1", "Ubuntu 24.04", "gone"),
    ("build-1", None, "2.4.1", "Debian 12", "connected"),
    ("build-2", None, "2.4.1", "Debian 12", "connected"),
    ("build-3", None, "2.1.7", "Debian 11", "deregistered"),
    ("build-4", None, "", "", "provisioned"),
]

LABELS = {"build-1": {"os": "debian", "rack": "4"}, "lab-berlin-1": {"os": "windows"}}
MACHINES = [
    ("PC-0417.example.com", "Windows 11"),
    ("PC-0418.example.com", "Windows 11"),
    ("paris-1.example.com", "macOS 15.2"),
]
OPERATIONS = [
    # ICE, kind, what has become of it, and its result, error or progress
    ("lab-berlin-1", "scrape", "succeeded", {"result": {"pages": 212}}),
    (
        "build-2",
        "remote-execute",
        "failed",
        {"error": {"code": "exit", "message": "exit status 1"}},
    ),
    ("build-1", "remote-execute", "succeeded", {"result": {"exit": 0}}),
    ("lab-paris-1", "debug", "running", {"fraction": 0.2, "message": "attached to process 4711"}),
    ("build-1", "remote-execute", "running", {"fraction": 0.64, "message": "tests/test_login.py"}),
    ("build-1", "schedule", "queued", {}),
    ("desk-carla", "execute", "queued", {}),
]


async def people(running: Harness) -> None:
    """Who works here."""
    await running.add_user("admin", Role.ADMIN)
    for name in ("bruno", "carla"):
        await running.add_user(name)


async def fleet(running: Harness, clock: RunningClock) -> dict[str, Connection]:
    """ICEs in every status; returns the connections of those that are connected."""
    connections = {}
    htu = f"{PUBLIC_URL}/ice/v1"
    for name, user, version, platform, fate in FLEET:
        body = {"ice_name": name, "ice_type": "normal" if user else "ci-cd"}
        if user:
            body["provisionedto"] = user
        ice = running.ice((await running.admin.post("/ices", body)).json["token"])
        clock.skip(minutes=17, seconds=23)
        if fate == "provisioned":
            continue
        connection = await ice.connect(htu=htu, iat=clock().timestamp())
        connection.hello(version=version, platform=platform, hostname=f"{name}.example.com")
        await connection.round_trip()
        clock.skip(minutes=9, seconds=41)
        if fate == "connected":
            connections[name] = connection
        if fate in ("gone", "stolen"):
            await connection.leave()
        if fate == "deregistered":
            await running.act(name, "deregister")
        if fate == "stolen":
            thief = running.ice(ice.token, Key())
            for _ in range(3):
                clock.skip(minutes=1)
                refused = await thief.refused(htu=htu, iat=clock().timestamp())
                assert refused.code == "key-mismatch", refused.code
    await running.settled()
    return connections


async def work(running: Harness, clock: RunningClock, connections: dict[str, Connection]) -> None:
    """Operations that have ended, go on and wait, one of a pool; labels and a note of the ICE that works."""
    for name, labels in LABELS.items():
        described = {"labels": labels, "note": "On the third shelf of the rack by the window."}
        await running.admin.call("PATCH", f"/ices/{name}", json=described)
    for name, kind, outcome, result in OPERATIONS:
        schedule = {"run_at": to_text(clock() + timedelta(hours=14))} if kind == "schedule" else {}
        operation = await asked(running.admin, name, kind, params={"suite": "smoke"}, **schedule)
        clock.skip(minutes=3, seconds=12)
        if outcome == "queued":
            continue
        connection = connections[name]
        await take(connection)
        if outcome == "running":
            progress(connection, operation, **result)
            await running.eventually(f"/operations/{operation}", lambda told: told.json["progress"])
            continue
        clock.skip(minutes=2, seconds=48)
        await finished(connection, operation, outcome, **result)
    await running.make_pool("debian", {"os": "debian"})
    await running.admin.post(
        "/pools/debian/operations", {"kind": "remote-execute", "params": {"suite": "smoke"}}
    )
    await running.settled()


async def machines(running: Harness, clock: RunningClock) -> None:
    """Machines that wait for an approval; one replaces an ICE."""
    more = {"name": "Lab PCs, third floor", "provisionedto": "bruno", "max_uses": 30}
    _, secret = await new_key(running, KEY, approval=True, **more)
    for host, platform in MACHINES:
        machine = Machine(running.session, running.url, secret, host, public=PUBLIC_URL)
        headers = machine.headers("POST", ENROLMENTS, iat=clock().timestamp())
        status, answer = await machine.ask(headers, platform=platform)
        assert status == 202, answer
        clock.skip(minutes=4, seconds=9)
    await running.settled()


async def take_picture(page: Page, name: str, scheme: str, **how: Any) -> None:
    """One picture."""
    await page.mouse.move(0, 0)
    # As it is: to hide the caret, playwright would want an inline style, which the CSP forbids.
    await page.screenshot(path=IMAGES / f"{name}-{scheme}.png", caret="initial", **how)


async def tour(browser: Browser, running: Harness, scheme: str, now: datetime) -> None:
    """All pictures in one colour scheme."""
    look: dict[str, Any] = {
        "color_scheme": scheme,
        "viewport": {"width": 1280, "height": 800},
        "locale": "en-GB",
        "timezone_id": "UTC",
        "reduced_motion": "reduce",
    }
    admin = Admin(await browser.new_context(**look), running)
    await admin.context.clock.set_fixed_time(now)
    await admin.log_in("admin")
    page = await admin.open()
    await expect(row(page, "lab-berlin-1").locator(".version")).not_to_be_empty()
    await page.get_by_text("What the statuses mean").click()
    await take_picture(page, "ices", scheme, full_page=True)
    name = f"lab-oslo-{1 if scheme == 'light' else 2}"
    await fill(page, name)
    await submit(page)
    await press(page, "Ok")
    await take_picture(page, "token", scheme)
    await close_token(page)
    await choose(page, "lab-berlin-1", "Deregister")
    await take_picture(page, "confirm", scheme)
    await press(page, "Cancel")
    await expect(dialog(page)).to_have_count(0)
    await page.goto(f"{running.url}/admin/ices/lab-paris-2")
    await expect(page.locator(".timeline .refused")).to_be_visible()
    await take_picture(page, "one-ice", scheme)
    await page.goto(f"{running.url}/admin/ices/build-1")
    await expect(page.get_by_role("progressbar")).to_be_visible()
    await take_picture(page, "working-ice", scheme)
    await page.goto(f"{running.url}/admin/operations")
    await expect(page.get_by_role("progressbar")).to_have_count(2)
    await take_picture(page, "operations", scheme)
    await page.goto(f"{running.url}/admin/enrolment")
    await page.get_by_label("Choose PC-0417.example.com").check()
    await take_picture(page, "enrolment", scheme, full_page=True)
    await admin.context.close()
    assert not admin.faults, admin.faults


async def main() -> None:
    """Both colour schemes from one gateway."""
    await asyncio.to_thread(IMAGES.mkdir, parents=True, exist_ok=True)
    clock = RunningClock(datetime(2026, 3, 2, 9, tzinfo=UTC))
    with tempfile.TemporaryDirectory() as folder:
        options = {"server__public_url": [PUBLIC_URL]}
        async with chromium() as browser, harness(Path(folder), clock=clock, **options) as running:
            await people(running)
            await work(running, clock, await fleet(running, clock))
            await machines(running, clock)
            for scheme in ("light", "dark"):
                await tour(browser, running, scheme, clock())
    print(f"the pictures are in {IMAGES}")  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
