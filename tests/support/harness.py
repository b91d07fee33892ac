"""A gateway in this process, on a real socket and a real SQLite file, with an admin to act on it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web_app
import argon2
from click.testing import CliRunner

from gateway.admin import openapi
from gateway.app import DEFAULT_TUNING, Gateway, Tuning, run_gateway
from gateway.cli import main
from gateway.core.audit_event import Actor, Via
from gateway.core.roles import Role
from gateway.core.times import Clock, utc_now
from gateway.runtime.setting_sources import load
from gateway.runtime.settings import Settings
from gateway.services.passwords import Passwords
from tests.support.databases import put_database
from tests.support.ice import PATIENCE, Ice, Key

QUICK_HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
"""Hashes that cost nothing: what they cost is not what is tested."""
ADMIN = Actor("root", Via.COMMAND, "test-host")
API = "/admin/api/v1"
POLL = 0.005
"""Seconds between two looks of `eventually`."""


def settings_for(folder: Path, **options: Any) -> Settings:
    """Settings of a gateway in `folder` on a free port; options by key with `__` for the dot."""
    given = {key.replace("__", "."): value for key, value in options.items()}
    defaults = {
        "database.url": f"sqlite:///{folder}/ice.db",
        "server.port": 0,
        "metrics.listen": "",
        "node.name": "node-a",
        "log.level": "error",
    }
    return load(None, {}, defaults | given)


class Answer:
    """An HTTP answer, read whole."""

    def __init__(self, status: int, headers: Any, body: bytes, json: Any) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.json = json

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.body[:300]!r})"


class Api:
    """Calls the admin API as one caller."""

    def __init__(self, session: aiohttp.ClientSession, base: str, token: str | None) -> None:
        self.session = session
        self.base = base
        self.token = token

    async def call(self, method: str, path: str, **kwargs: Any) -> Answer:
        headers = dict(kwargs.pop("headers", {}))
        if self.token is not None:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        async with self.session.request(
            method, f"{self.base}{API}{path}", headers=headers, **kwargs
        ) as response:
            body = await response.read()
            kind = response.headers.get("Content-Type", "").partition(";")[0]
            is_json = kind.endswith(("/json", "+json"))
            return Answer(
                response.status,
                response.headers,
                body,
                await response.json(content_type=None) if is_json else None,
            )

    async def get(self, path: str, **kwargs: Any) -> Answer:
        return await self.call("GET", path, **kwargs)

    async def post(self, path: str, json: Any = None, **kwargs: Any) -> Answer:
        return await self.call("POST", path, json=json, **kwargs)


async def command(*args: str, status: int = 0) -> Any:
    """Run `ice-gateway` in a thread of its own; its outcome, which has to have this status."""
    runner = CliRunner(catch_exceptions=False)
    done = await asyncio.to_thread(runner.invoke, main, list(args))
    assert done.exit_code == status, f"{args} gave {done.exit_code}: {done.output}"
    return done


class Harness:
    """A running gateway and what tests do with it."""

    def __init__(
        self,
        gateway: Gateway,
        session: aiohttp.ClientSession,
        clock: Clock,
        passwords: Passwords,
    ) -> None:
        self.gateway = gateway
        self.passwords = passwords
        """What the gateway hashes and checks passwords with."""
        self.clock = clock
        """The gateway's."""
        self.session = session
        self.url = gateway.url
        self.admin: Api
        self._ices: list[Ice] = []

    async def add_user(self, name: str, role: Role = Role.MEMBER) -> None:
        await self.gateway.services.accounts.add_user(ADMIN, name, role, None)

    async def api(
        self, user: str, role: Role | None = None, ice: str | None = None, pool: str | None = None
    ) -> Api:
        """The API as `user`, who is added with `role` where one is given; for one `ice` or `pool` alone."""
        if role is not None:
            await self.add_user(user, role)
        made = await self.gateway.services.accounts.create_token(
            *(ADMIN, user, "test", 0, ice),
            pool=pool,
            may_change_accounts=ice is None and pool is None,
        )
        return Api(self.session, self.url, made.secret.reveal())

    async def provision(self, name: str = "lab-1", ice_type: str = "normal") -> Ice:
        """Provision an ICE by the API; a normal one belongs to alice."""
        body = {"ice_name": name, "ice_type": ice_type}
        if ice_type == "normal":
            body["provisionedto"] = "alice"
        answer = await self.admin.post("/ices", body)
        assert answer.status == 201, f"provisioning {name} gave {answer}"
        return self.ice(answer.json["token"])

    def ice(self, token: str, key: Key | None = None) -> Ice:
        ice = Ice(self.url, token, key)
        self._ices.append(ice)
        return ice

    async def act(self, name: str, action: str, **headers: str) -> Any:
        """An action that must succeed; returns its JSON."""
        answer = await self.admin.post(f"/ices/{name}/{action}", headers=headers)
        assert answer.status == 200, f"{action} {name} gave {answer}"
        return answer.json

    async def label(self, name: str, **labels: str | None) -> None:
        """Set labels of an ICE; None removes one."""
        answer = await self.admin.call("PATCH", f"/ices/{name}", json={"labels": labels})
        assert answer.status == 200, f"labelling {name} gave {answer}"

    async def make_pool(self, name: str, labels: Mapping[str, str], **more: Any) -> Any:
        """Make a pool, or replace it; returns its JSON."""
        body = {"labels": labels, **more}
        answer = await self.admin.call("PUT", f"/pools/{name}", json=body)
        assert answer.status in (200, 201), f"the pool {name} gave {answer}"
        return answer.json

    async def status(self, name: str) -> str:
        return (await self.admin.get(f"/ices/{name}")).json["status"]

    async def command(self, *args: str, status: int = 0) -> Any:
        """Run `ice-gateway` beside this gateway, on its database and in a thread of its own."""
        return await command(*args, "--database", self.gateway.settings.database_url, status=status)

    async def settled(self) -> None:
        """Have written what has happened so far: presence is otherwise written a moment later."""

        async def nothing(_: Any) -> None:
            """Comes after whatever is being written."""

        await self.gateway.node.presence.flush()
        await self.gateway.engine.write(nothing)

    async def eventually(self, path: str, holds: Any) -> Answer:
        """Ask again until `holds(answer)`, whenever something may have been written."""
        async with asyncio.timeout(PATIENCE):
            for attempt in itertools.count():
                if holds(answer := await self.admin.get(path)):
                    break
                await self.settled()
                if (
                    attempt
                ):  # for a timer or another process: asking at once would take a whole core
                    await asyncio.sleep(POLL)
            return answer

    async def close(self) -> None:
        for ice in self._ices:
            for connection in ice.connections:
                await connection.close()


@contextlib.asynccontextmanager
async def harness(
    folder: Path,
    *,
    clock: Clock = utc_now,
    monotonic: Callable[[], float] = time.monotonic,
    tuning: Tuning = DEFAULT_TUNING,
    **options: Any,
) -> AsyncIterator[Harness]:
    """Run a gateway with an admin `root` and a member `alice`; see `run_gateway`.

    `options` are settings, `tuning` the limits that are none. It hashes passwords quickly and listens by two handles: to open and close 64 takes as long as most tests.
    """
    settings = settings_for(folder, **options)
    if "database__url" not in options:
        put_database(settings.database_path)
    passwords = Passwords(QUICK_HASHER)
    async with (
        run_gateway(
            settings,
            clock=clock,
            monotonic=monotonic,
            passwords=passwords,
            doors=2,
            tuning=tuning,
        ) as gateway,
        # Shorter than the gateway keeps a connection, or else both might let go of it at once.
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(keepalive_timeout=2)) as session,
    ):
        running = Harness(gateway, session, clock, passwords)
        accounts = gateway.services.accounts
        running.admin = await running.api(
            "root", None if await accounts.user("root") else Role.ADMIN
        )
        if await accounts.user("alice") is None:
            await running.add_user("alice")
        try:
            yield running
        finally:
            await running.close()
            # It would keep this gateway for as long as the process runs, and the collector would walk through it.
            aiohttp.web_app._cached_build_middleware.cache_clear()


def marked(request: Any) -> dict[str, Any]:
    """The arguments that a test's mark `gateway` has for `harness`."""
    mark = request.node.get_closest_marker("gateway")
    return {} if mark is None else mark.kwargs


class Description:
    """The API's own OpenAPI document, to which every answer is held."""

    def __init__(self, document: dict[str, Any]) -> None:
        schemas = json.loads(json.dumps(document["components"]["schemas"]))
        for name, schema in schemas.items():
            # RFC 9457 section 3.2 lets problems have further members; all else is described whole.
            if "properties" in schema and name != "ProblemDocument":
                schema["additionalProperties"] = False
        self._components = {"schemas": schemas}
        self._paths = [
            (re.compile(re.sub(r"\{\w+\}", "[^/]+", template)), item)
            for template, item in document["paths"].items()
        ]

    def check(self, method: str, path: str, answer: Answer) -> None:
        """Fail unless `answer` is as described, not to be cached, and without what nobody may see."""
        # Only what asks for the description loads it.
        import jsonschema  # noqa: PLC0415

        asked = f"{method} {path} answered {answer}"
        assert answer.headers["Cache-Control"] == "no-store", f"{asked} without no-store"
        text = answer.body.decode()
        shows_token = answer.status < 300 and (
            (method == "POST" and path.endswith(("/ices", "/reprovision", "/reregister")))
            or (method == "PATCH" and path.startswith("/users/"))
        )
        for name, secret in _SECRETS.items():
            allowed = name == "registration token" and shows_token
            allowed |= name == "API token" and (method, path) == ("POST", "/api-tokens")
            # Digests of events are no secrets, but look like hashes of tokens.
            allowed |= name == "hash of a token" and path.startswith("/audit/")
            assert allowed or not secret.search(text), f"{asked}: it shows a {name}"
        operation = self._operation(method, path.partition("?")[0])
        kind = answer.headers.get("Content-Type", "").partition(";")[0]
        if operation is None:
            assert answer.status in (401, 404, 405), f"{asked}, but the call is not described"
            schema = {"$ref": "#/components/schemas/ProblemDocument"}
        else:
            described = operation["responses"].get(str(answer.status))
            assert described is not None, f"{asked}: the status is not described"
            if "content" not in described:
                assert not answer.body, f"{asked}, and a body is not described"
                return
            assert kind in described["content"], f"{asked}: {kind} is not described"
            schema = described["content"][kind]["schema"]
        if answer.status >= 400:
            assert kind == "application/problem+json", f"{asked} as {kind}"
            assert answer.json["status"] == answer.status, f"{asked} with another status inside"
        told = answer.body.decode() if answer.json is None else answer.json
        if (
            isinstance(told, dict) and len(told.get("items", ())) > 2 * _SAMPLE
        ):  # the same shape again and again
            told = {**told, "items": [*told["items"][:_SAMPLE], *told["items"][-_SAMPLE:]]}
        jsonschema.Draft202012Validator({**schema, "components": self._components}).validate(told)

    def _operation(self, method: str, path: str) -> dict[str, Any] | None:
        for pattern, item in self._paths:
            if pattern.fullmatch(path) and method.lower() in item:
                return item[method.lower()]
        return None


_SAMPLE = 100
_SECRETS = {
    "registration token": re.compile(r"eyJ[\w-]+\.\.[\w-]+\.[\w-]+\.[\w-]+"),
    "API token": re.compile(r"icegw_"),
    "hash of a token": re.compile(r"\b[0-9a-f]{64}\b"),
    "hash of a password": re.compile(r"argon2"),
    "stack trace": re.compile(r"Traceback|File \\?\""),
}


@functools.cache
def _description() -> Description:
    return Description(openapi.document())


def hold_to_description(monkeypatch: Any) -> None:
    """From here on every answer that `Api` gets is held to the API's description."""
    described = _description()
    call = Api.call

    async def checked(self: Api, method: str, path: str, **kwargs: Any) -> Answer:
        answer = await call(self, method, path, **kwargs)
        if method != "HEAD":
            described.check(method, path, answer)
        return answer

    monkeypatch.setattr(Api, "call", checked)


def expect_refused(answer: Answer, status: int, code: str) -> Any:
    """The answer must be this refusal; returns the problem document."""
    refused = (answer.status, answer.json.get("code") if answer.json else None)
    assert refused == (status, code), f"expected the refusal {status} {code}, got {answer}"
    return answer.json
