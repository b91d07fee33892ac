"""Who is busy at the gateway: ICEs that come, work and go, admins who act, people at pages, a receiver of webhooks.

Every actor goes on by itself until it is cancelled, and counts what it does; what is amiss is a fault of the run. Chance
comes again by its seed, but for what the order of answers makes of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from client.agent import IceClient
from client.events import Event
from client.operations import Operation, OperationFailed, Report
from tests.support.harness import Answer, Api
from tests.support.pages import Browser
from tests.support.receiver import Receiver

PASSWORD = "correct horse battery staple"
ADMIN = "boss"
USER = "alice"
NEVER_REST = (
    *("ICE admitted", "ICE refused", "POST ices", "POST operations", "POST schedules"),
    *("POST api-tokens", "login", "page", "lines of a stream", "messages taken"),
)
"""What some actor does each minute, whatever happens to the gateway."""
_RESTARTING = (aiohttp.ClientConnectionError, asyncio.TimeoutError)


class World:
    """What the actors share: where the gateway is, what it was told, what was counted."""

    def __init__(
        self, folder: Path, url: str, ca_file: Path, api: Api, chance: random.Random
    ) -> None:
        self.folder = folder
        self.url = url
        self.ca_file = ca_file
        self.api = api
        self.chance = chance
        self.did: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.tokens: dict[str, str] = {}
        """The newest token of each ICE."""
        self.changed: dict[str, asyncio.Event] = {}
        """By ICE: it has another token."""

    async def call(
        self, method: str, path: str, json: Any = None, *, good: tuple[int, ...]
    ) -> Answer:
        """Call the API; an answer that is not `good` is a fault."""
        answer = await self.api.call(method, path, **({} if json is None else {"json": json}))
        what = f"{method} {path.split('/')[1]}"
        self.did[what] += 1
        if answer.status not in good:
            self.faults[f"{what}: {answer.status} {answer.body[:200]!r}"] += 1
        return answer

    def resting(self, before: Counter[str]) -> list[str]:
        """The kinds of work that have stopped since `before`. Without work a gateway cannot leak, so the run proves nothing."""
        return [what for what in NEVER_REST if self.did[what] == before[what]]

    def give(self, name: str, token: str) -> None:
        """An ICE has a new token."""
        self.tokens[name] = token
        self.changed.setdefault(name, asyncio.Event()).set()

    async def rest(self, low: float, high: float) -> None:
        await asyncio.sleep(self.chance.uniform(low, high))


async def ice(world: World, name: str) -> None:
    """An ICE that stays a while, goes, and comes again; one that must stop waits for a new token."""
    changed = world.changed.setdefault(name, asyncio.Event())

    def observe(event: Event) -> None:
        world.did[f"ICE {event.kind}"] += 1

    while True:
        changed.clear()
        client = IceClient(
            world.url,
            state_dir=world.folder / name,
            token=world.tokens[name],
            ca_file=world.ca_file,
            handlers=dict.fromkeys(("remote-execute", "schedule"), _work),
            observe=observe,
        )
        async with client:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(world.chance.uniform(3, 25)):
                    await changed.wait()
        await world.rest(0.2, 3)


async def _work(operation: Operation, report: Report) -> Any:
    await report(0.5, "half way")
    await operation.log("x" * operation.params.get("log", 100) + "\n")
    await asyncio.sleep(operation.params.get("seconds", 0.1))
    if operation.params.get("fails"):
        raise OperationFailed("as-told", "the soak wanted it to fail")
    return {"did": operation.id, "padding": "y" * operation.params.get("result", 10)}


async def lifecycle(world: World, names: list[str]) -> None:
    """An admin replaces tokens, deregisters, disconnects, pauses and labels."""
    while True:
        name = world.chance.choice(names)
        found = await world.call("GET", f"/ices/{name}", good=(200,))
        match found.json["status"], world.chance.randrange(8):
            case "provisioned", _ if not world.chance.randrange(3):
                await _renew(world, name, "reprovision")
            case ("registered", 0) | ("deregistered", _):
                await _renew(world, name, "reregister")
            case "registered", 1:
                await world.call("POST", f"/ices/{name}/deregister", good=(200, 409))
            case "registered", 2:
                await world.call("POST", f"/ices/{name}/disconnect", good=(200, 409))
            case "registered", 3:
                body = {"action": "pause", "ice_names": [name]}
                await world.call("POST", "/ices/bulk", body, good=(200,))
                await world.call("POST", "/ices/bulk", body | {"action": "resume"}, good=(200,))
            case _:
                labels = {"site": f"site-{world.chance.randrange(5)}", "lab": None}
                await world.call("PATCH", f"/ices/{name}", {"labels": labels}, good=(200,))
        await world.rest(0.2, 1.0)


async def _renew(world: World, name: str, action: str) -> None:
    # It may have registered meanwhile, or another admin was quicker.
    answer = await world.call("POST", f"/ices/{name}/{action}", good=(200, 409))
    if answer.status == 200:
        world.give(name, answer.json["token"])


async def operator(world: World, names: list[str]) -> None:
    """Requests operations, waits for some, cancels some, reads logs."""
    while True:
        params = {
            "log": world.chance.choice((100, 5_000, 60_000)),
            "result": world.chance.choice((10, 20_000)),
            "seconds": world.chance.uniform(0, 0.5),
            "fails": not world.chance.randrange(10),
        }
        body = {"kind": "remote-execute", "params": params}
        if not world.chance.randrange(10):
            body["idempotency_key"] = f"key-{world.chance.randrange(1_000_000)}"
        name = world.chance.choice(names)
        wait = "?wait=5" if world.chance.randrange(2) else ""
        # Not registered at the moment, or too many wait for it: both are as promised.
        made = await world.call(
            "POST", f"/ices/{name}/operations{wait}", body, good=(200, 202, 409, 429)
        )
        if made.status in (200, 202):
            path = f"/operations/{made.json['id']}"
            if not world.chance.randrange(5):
                await world.call("POST", f"{path}/cancel", good=(200, 202, 409))
            elif not world.chance.randrange(3):
                await world.call("GET", f"{path}/log", good=(200,))
        await world.rest(0.05, 0.5)


async def planner(world: World, names: list[str]) -> None:
    """Makes pools, schedules and webhooks, lets them be for a while, and deletes them."""
    while True:
        pool = f"pool-{world.chance.randrange(4)}"
        labels = {"site": f"site-{world.chance.randrange(5)}"}
        await world.call("PUT", f"/pools/{pool}", {"labels": labels}, good=(200, 201))
        work = {"kind": "remote-execute", "params": {"log": 100}}
        await world.call("POST", f"/pools/{pool}/operations", work, good=(202, 409, 429))
        timed = {"name": "minutely", "ice_name": world.chance.choice(names), "cron": "* * * * *"}
        made = await world.call("POST", "/schedules", timed, good=(201, 409))
        await world.rest(2, 20)
        if made.status == 201:
            path = f"/schedules/{made.json['id']}"
            await world.call("POST", f"{path}/run", {}, good=(202, 409, 429))
            await world.call("PATCH", path, {"enabled": False}, good=(200,))
            await world.call("GET", f"{path}/occurrences", good=(200,))
            await world.call("DELETE", path, good=(200, 204))
        await world.call("DELETE", f"/pools/{pool}", good=(200, 204, 409))


async def accounts(world: World) -> None:
    """An admin disables and enables a user, and makes and revokes API tokens."""
    while True:
        made = await world.call(
            "POST", "/api-tokens", {"user": USER, "name": "soak", "expires": None}, good=(201,)
        )
        if made.status == 201:
            path = f"/api-tokens/{made.json['api_token']['id']}"
            await world.call("DELETE", path, good=(200, 204))
        for disabled in (True, False):
            await world.call("PATCH", f"/users/{USER}", {"disabled": disabled}, good=(200,))
        await world.rest(20, 40)  # what is revoked is kept


async def person(world: World, tls: Any) -> None:
    """Logs in, looks at pages, and logs out; types a wrong password now and then."""
    while True:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:
            browser = Browser(session, world.url)
            if not world.chance.randrange(8):
                await browser.log_in(ADMIN, "wrong horse battery staple")
            answer = await browser.log_in(ADMIN, PASSWORD)
            world.did["login"] += 1
            if answer.status not in (303, 429):
                world.faults[f"login: {answer.status}"] += 1
            for page in ("", "operations", "audit", "users", "pools", "schedules", "webhooks"):
                found = await browser.get(page)
                world.did["page"] += 1
                if answer.status == 303 and found.status not in (200, 302):
                    world.faults[f"page {page}: {found.status}"] += 1
                await world.rest(0.1, 0.5)
            if world.chance.randrange(2):  # the other logins end by themselves
                await browser.post("logout")
        await world.rest(2, 10)


async def watcher(world: World) -> None:
    """Follows the stream of events for a while, leaves without a word, and comes back."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(world.chance.uniform(1, 20)):
                headers = {"Authorization": f"Bearer {world.api.token}"}
                url = f"{world.url}/admin/api/v1/events/stream"
                async with world.api.session.get(url, headers=headers) as stream:
                    async for line in stream.content:
                        world.did["lines of a stream"] += bool(line.strip())
        await world.rest(0.5, 3)


async def receiver(world: World, webhook_receiver: Receiver) -> None:
    """A receiver that is down now and then, at which webhooks of all events come and go."""
    while True:
        hook = {"name": "soak", "url": webhook_receiver.url, "events": ["*"]}
        made = await world.call("POST", "/webhooks", hook, good=(201,))
        await world.rest(5, 30)
        webhook_receiver.down = not world.chance.randrange(3)
        await world.rest(2, 10)
        webhook_receiver.down = False
        path = f"/webhooks/{made.json['webhook']['id']}"
        await world.call("POST", f"{path}/test", good=(200,))
        await world.call("GET", f"{path}/deliveries", good=(200,))
        await world.call("DELETE", path, good=(200, 204))
        world.did["messages taken"] += len(webhook_receiver.taken)
        webhook_receiver.taken.clear()
        webhook_receiver.came.clear()


async def kept_up(world: World, act: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    """Let an actor go on where a connection broke, as when TLS was renewed; anything else is a fault."""
    while True:
        try:
            await act(world, *arguments)
        except _RESTARTING as error:
            world.did[f"{act.__name__}: {type(error).__name__}"] += 1
        except Exception as error:  # noqa: BLE001 - it is told, and the others go on
            world.faults[f"{act.__name__}: {error!r}"] += 1
        await asyncio.sleep(0.5)
