"""A machine for tests that enrols, written apart from `client`: it can also do everything wrong."""

from __future__ import annotations

from typing import Any

import aiohttp

from tests.support.ice import Key

ENROLMENTS = "/ice/v1/enrolments"
KEY = {"name": "lab PCs", "ice_type": "normal", "provisionedto": "alice", "name_prefix": "lab-"}
CI_CD = {"name": "runners", "ice_type": "ci-cd", "name_prefix": "ci-"}


async def new_key(running: Any, body: Any = KEY, **more: Any) -> tuple[Any, str]:
    """Make an enrolment key by the API; the key and its secret."""
    answer = await running.admin.post("/enrolment-keys", {**body, **more})
    assert answer.status == 201, answer
    return answer.json["enrolment_key"], answer.json["secret"]


class Machine:
    """A machine with a key pair of its own and the secret of an enrolment key."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        secret: str,
        hostname: str = "PC-7.example.org",
        *,
        key: Key | None = None,
        public: str | None = None,
    ) -> None:
        self.session = session
        self.url = url
        self.secret = secret
        self.hostname = hostname
        self.key = key or Key()
        self.public = public or url
        """The gateway's URL for which its proofs are made."""

    def headers(self, method: str, path: str, **claims: Any) -> dict[str, str]:
        """Good headers; `claims` go into the proof."""
        claims = {"htm": method, **claims}
        proof = self.key.proof(claims.pop("htu", self.public + path), self.secret, **claims)
        return {"Authorization": f"Bearer {self.secret}", "DPoP": proof}

    async def send(
        self, method: str, path: str, headers: dict[str, str] | None = None, **request: Any
    ) -> tuple[int, Any, Any]:
        """Status, JSON and headers of the answer."""
        headers = self.headers(method, path) if headers is None else headers
        async with self.session.request(
            method, self.url + path, headers=headers, **request
        ) as answer:
            return answer.status, await answer.json(content_type=None), answer.headers

    async def ask(self, headers: dict[str, str] | None = None, **wanted: Any) -> tuple[int, Any]:
        """Ask for an ICE."""
        body = {"hostname": self.hostname, "platform": "test", **wanted}
        status, answer, _ = await self.send("POST", ENROLMENTS, headers, json=body)
        return status, answer

    async def poll(self, enrolment: str) -> tuple[int, Any]:
        """Ask what became of the request."""
        status, answer, _ = await self.send("GET", f"{ENROLMENTS}/{enrolment}")
        return status, answer
