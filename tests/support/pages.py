"""One person's browser on the admin's pages, without a browser: what htmx and forms would send."""

from __future__ import annotations

import html
import io
import re
from urllib.parse import urlencode

from gateway.admin.auth import COOKIE, FORM_TOKEN, SECURE_COOKIE
from gateway.core.roles import Role
from gateway.core.secret import Secret
from tests.support.harness import ADMIN, Answer

PASSWORD = "correct horse battery"


class Browser:
    """One person's browser: it keeps cookies, and sends what a page of ours would send."""

    def __init__(self, session, url):
        self.session = session
        self.url = url
        self.origin = url
        self.form_token = ""

    async def send(self, method, path, fields=None, *, headers=None, data=None, follow=False):
        data = urlencode(fields, doseq=True).encode() if fields is not None else data
        given = {"Content-Type": "application/x-www-form-urlencoded"} if data is not None else {}
        given |= headers or {}
        url = path if path.startswith("http") else f"{self.url}/admin/{path}"
        async with self.session.request(
            method,
            url,
            data=data and io.BytesIO(data),
            headers={name: value for name, value in given.items() if value is not None},
            allow_redirects=follow,
        ) as response:
            body = await response.read()
            answer = Answer(response.status, response.headers, body, None)
            answer.text = body.decode()
            answer.url = str(response.url)
            return answer

    async def get(self, path="", **how):
        return await self.send("GET", path, **how)

    async def part(self, path, target="table"):
        """What htmx asks for."""
        return await self.get(path, headers={"HX-Request": "true", "HX-Target": target})

    async def post(self, path, fields=None, **headers):
        """What htmx posts; a header of None is left out."""
        given = {
            "HX-Request": "true",
            "Origin": self.origin,
            FORM_TOKEN: self.form_token,
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        return await self.send("POST", path, fields or {}, headers=given)

    async def log_in(self, name="root", password=PASSWORD, **headers):
        given = {"Origin": self.origin, **headers}
        answer = await self.send(
            "POST", "login", {"name": name, "password": password}, headers=given
        )
        if answer.status == 303:
            found = re.search(r'name="form-token" content="(\w+)"', (await self.get("guide")).text)
            self.form_token = found and found[1]
        return answer

    @property
    def cookie(self):
        names = (COOKIE, SECURE_COOKIE)
        return next((c.value for c in self.session.cookie_jar if c.key in names), None)


async def has_password(running, name, role=Role.ADMIN, password=PASSWORD):
    accounts = running.gateway.services.accounts
    user = await accounts.user(name)
    if user is None:
        await accounts.add_user(ADMIN, name, role, Secret(password))
    elif user.password_hash is None:  # to set it again would end their logins
        await accounts.set_password(ADMIN, name, Secret(password))


def said(answer):
    """The page's text without markup."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", answer.text)).split())
