"""`/healthz`: the process lives. `/readyz`: it admits ICEs, and if not, why."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from gateway.errors import problem
from gateway.respond import json_response, problem_response


class Health:
    """Answers both; `fault` gives the reason why nobody is admitted, or None."""

    def __init__(self, fault: Callable[[], str | None]) -> None:
        self._fault = fault

    async def alive(self, _: web.Request) -> web.Response:
        """200 as long as anything is answered."""
        return json_response({"status": "alive"})

    async def ready(self, _: web.Request) -> web.Response:
        """200 while ICEs are admitted, else 503 with the reason."""
        reason = self._fault()
        if reason is not None:
            return problem_response(problem("unavailable", reason))
        return json_response({"status": "ready"})
