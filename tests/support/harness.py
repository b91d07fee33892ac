"""A gateway in this process, on a real socket and a real SQLite file, with an admin to act on it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from gateway.app import Gateway, run_gateway
from gateway.event import Actor, Via
from gateway.roles import Role
from gateway.settings import Settings, load
from gateway.times import Clock, utc_now
from tests.support.ice import PATIENCE, Ice, Key

ADMIN = Actor("root", Via.COMMAND, "test-host")
API = "/admin/api/v1"


def settings_for(folder: Path, **options: Any) -> Settings:
    """Settings of a gateway in `folder` on a free port; options by key with `__` for the dot."""
    given = {key.replace("__", "."): value for key, value in options.items()}
    defaults = {
        "database.url": f"sqlite:///{folder}/ice.db",
        "server.port": 0,
        "metrics.listen": "",
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
            is_json = "json" in response.headers.get("Content-Type", "")
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


class Harness:
    """A running gateway and what tests do with it."""

    def __init__(self, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.session = session
        self.url = gateway.url
        self.admin: Api
        self._ices: list[Ice] = []

    async def add_user(self, name: str, role: Role = Role.MEMBER) -> None:
        await self.gateway.accounts.add_user(ADMIN, name, role, None)

    async def api(self, user: str, role: Role | None = None) -> Api:
        """The API as `user`, who is added with `role` where one is given."""
        if role is not None:
            await self.add_user(user, role)
        made = await self.gateway.accounts.create_token(ADMIN, user, "test", 0)
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

    async def status(self, name: str) -> str:
        return (await self.admin.get(f"/ices/{name}")).json["status"]

    async def eventually(self, path: str, holds: Any) -> Answer:
        """Ask again until `holds(answer)`; presence is written a moment after it happened."""
        async with asyncio.timeout(PATIENCE):
            while True:
                answer = await self.admin.get(path)
                if holds(answer):
                    return answer

    async def close(self) -> None:
        for ice in self._ices:
            for connection in ice.connections:
                await connection.close()


@contextlib.asynccontextmanager
async def harness(
    folder: Path, *, clock: Clock = utc_now, **options: Any
) -> AsyncIterator[Harness]:
    """Run a gateway with an admin `root` and a member `alice`."""
    async with (
        run_gateway(settings_for(folder, **options), clock=clock) as gateway,
        aiohttp.ClientSession() as session,
    ):
        running = Harness(gateway, session)
        known = {user.name for user in await gateway.accounts.users()}
        running.admin = await running.api("root", None if "root" in known else Role.ADMIN)
        if "alice" not in known:
            await running.add_user("alice")
        try:
            yield running
        finally:
            await running.close()
