"""Runs the issuer of tests/sso/issuer.mjs: it needs Node.js, and what `npm ci` puts into tests/sso/node_modules."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

import pytest

FOLDER = Path(__file__).parent
SECRET = "a secret/of: the tests, with 32 bytes"
REQUIRED = "ICE_REQUIRE_OIDC"
"""A variable of the environment: if it is set, the tests fail where they would be skipped."""


def why_not() -> str | None:
    """Why the issuer cannot run here; None if it can."""
    if shutil.which("node") is None:
        return "there is no Node.js"
    if not (FOLDER / "node_modules" / "oidc-provider").is_dir():
        return "run `npm ci` in tests/sso"
    return None


def needed() -> None:
    """Skip the test, or fail, if the issuer cannot run here."""
    reason = why_not()
    if reason is not None:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(reason)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


@contextmanager
def oidc_provider(gateway: str) -> Iterator[dict[str, str]]:
    """The URLs of the issuers `userinfo` and `id_token`, whose client is the gateway at the URL `gateway`."""
    sso = f"{gateway}/admin/sso"
    with subprocess.Popen(
        [str(shutil.which("node")), "issuer.mjs", f"{sso}/callback", f"{sso}/backchannel-logout"],
        cwd=FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()  # ends it


async def log_in(browser, who: str, to: str = ""):
    """Press the button, log in at the issuer if it asks, and come back; returns the callback's answer."""
    answer = await browser.get(f"sso/login?to={to}")
    while answer.status in (302, 303):
        url = urljoin(answer.url, answer.headers["Location"])
        if "/interaction/" in url:
            url += f"?as={who}"
        answer = await browser.get(url)
    return answer


async def log_out_at(browser, issuer: str, client: str):
    """Log out at the issuer, whose page asks whether one really wants to; it tells its clients."""
    page = await browser.get(f"{issuer}/session/end?client_id={client}")
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page.text)) | {"logout": "yes"}
    action = re.search(r'action="([^"]+)"', page.text)
    assert action is not None, page
    return await browser.send("POST", action[1], fields)
