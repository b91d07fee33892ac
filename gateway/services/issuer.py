"""An OpenID Connect issuer as the gateway asks it: its metadata, its keys, tokens for a code, claims of a user.

What it publishes is kept for `KEPT` seconds, but a login begins only at an issuer that answered within `FRESH`. An issuer
that does not answer is left alone for some seconds: then every login fails at once, in place of waiting for it.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote_plus

import msgspec
import structlog

from gateway.core import json_input
from gateway.core.jwks import MAX_TOKEN, KeySet, UnknownKey
from gateway.core.oidc import BadMetadata, Metadata, discovery_url
from gateway.core.secret import Secret
from gateway.runtime.http_client import HttpClient, Reply, Unreachable
from gateway.runtime.settings import BadSetting
from gateway.runtime.sso_settings import SsoSettings

KEPT: Final = 900.0
"""Seconds after which metadata and keys are asked for again."""
FRESH: Final = 10.0
"""Seconds after which a new login asks for the metadata again, so that no browser is sent to an issuer that is down."""
REFETCH: Final = 5.0
"""Seconds between two requests for the keys because of an unknown `kid`; forged tokens in between cost none."""
DOWN: Final = 5.0
"""Seconds for which an issuer that did not answer is not asked."""
AT_ONCE: Final = 8
"""Requests to the issuer at a time; more logins are refused."""
T = TypeVar("T")
_MAX_SECRET: Final = 4096
_OK: Final = 200
_CLIENT_ERRORS: Final = range(400, 500)

_log = structlog.get_logger()


class IssuerUnavailable(Exception):
    """The issuer cannot be reached, or does not answer as an issuer; the text says why, for operators."""


class IssuerRefused(Exception):
    """The issuer refuses what it was asked; the text is its error code (RFC 6749 section 5.2)."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the token endpoint gave for a code."""

    id_token: Secret
    access_token: Secret | None


class _TokenAnswer(msgspec.Struct, frozen=True):
    id_token: str
    access_token: str | None = None


class _Error(msgspec.Struct, frozen=True):
    error: str = "unknown"


def read_client_secret(path: Path | None) -> Secret | None:
    """The client secret in a file, without the end of its line; None without a file. Raises `BadSetting`."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_SECRET + 1).decode().strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise BadSetting(f"sso.client_secret_file {path} cannot be read: {reason}") from error
    if not 1 <= len(text) <= _MAX_SECRET or not text.isprintable():
        raise BadSetting(f"sso.client_secret_file {path} has no secret in one line")
    return Secret(text)


class Issuer:
    """Asks the issuer of the settings.

    Args:
        settings: whom to ask, and as which client.
        http: sends the requests.
        monotonic: seconds that pass.
    """

    def __init__(
        self,
        settings: SsoSettings,
        http: HttpClient,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._http = http
        self._monotonic = monotonic
        # Of many logins at once one asks, and the others wait for its answer.
        self._fetching = asyncio.Lock()
        self._metadata: tuple[float, Metadata] | None = None
        self._keys: tuple[float, KeySet] | None = None
        self._down: tuple[float, str] | None = None
        self._asking = 0

    async def metadata(self, at_most: float = KEPT) -> Metadata:
        """Its metadata, not older than `at_most` seconds. Raises `IssuerUnavailable`."""
        async with self._fetching:
            known = self._metadata
            if known is not None and self._monotonic() - known[0] < at_most:
                return known[1]
            reply = await self._published(discovery_url(self.settings.issuer), "metadata")
            try:
                found = Metadata.parse(reply.body, self.settings.issuer)
            except BadMetadata as error:
                raise self._fail(str(error)) from None
            self._metadata = self._monotonic(), found
            return found

    async def verify(self, token: Secret, *, by_anyone: bool) -> dict[str, Any]:
        """The claims of a token that the issuer has signed. Raises `IssuerUnavailable` and `BadToken`.

        A key that is not known yet is asked for: at once for a token of the issuer's own answer, and at most every
        `REFETCH` seconds for tokens that anyone can send.
        """
        try:
            return (await self.keys()).verify(token)
        except UnknownKey:
            return (await self._key_set(REFETCH if by_anyone else 0.0)).verify(token)

    async def keys(self) -> KeySet:
        """Its keys, not older than `KEPT`. Raises `IssuerUnavailable`."""
        return await self._key_set(KEPT)

    async def _key_set(self, at_most: float) -> KeySet:
        """The issuer's keys, not older than `at_most` seconds."""
        metadata = await self.metadata()
        async with self._fetching:
            known = self._keys
            if known is not None and self._monotonic() - known[0] < at_most:
                return known[1]
            reply = await self._published(metadata.jwks_uri, "keys")
            try:
                found = KeySet.parse(reply.body)
            except ValueError as error:
                raise self._fail(f"its keys cannot be used: {error}") from None
            self._keys = self._monotonic(), found
            return found

    async def exchange(self, code: Secret, verifier: str) -> Tokens:
        """The tokens for a code (OpenID Connect Core section 3.1.3). Raises `IssuerUnavailable` and `IssuerRefused`."""
        metadata = await self.metadata()
        form = {
            "grant_type": "authorization_code",
            "code": code.reveal(),
            "redirect_uri": self.settings.redirect_url,
            "code_verifier": verifier,
        }
        headers = self._authenticate(metadata, form)
        reply = await self._ask("POST", metadata.token_endpoint, headers=headers, form=form)
        if reply.status in _CLIENT_ERRORS:
            raise IssuerRefused(_error_code(reply))
        answer = _decoded(reply, _TokenAnswer, "token endpoint")
        access = answer.access_token
        return Tokens(Secret(answer.id_token), None if access is None else Secret(access))

    def _authenticate(self, metadata: Metadata, form: dict[str, str]) -> dict[str, str]:
        """Headers that prove who the gateway is; or additions to the form (RFC 6749 section 2.3.1)."""
        client_id = self.settings.client_id
        try:
            # Read again for each login: a secret can be renewed without a restart.
            secret = read_client_secret(self.settings.client_secret_file)
            method = metadata.authentication(has_secret=secret is not None)
        except (BadSetting, BadMetadata) as error:
            raise IssuerUnavailable(str(error)) from None
        if secret is not None and method == "client_secret_basic":
            both = f"{quote_plus(client_id)}:{quote_plus(secret.reveal())}"
            return {"Authorization": f"Basic {base64.b64encode(both.encode()).decode()}"}
        form["client_id"] = client_id
        if secret is not None:
            form["client_secret"] = secret.reveal()
        return {}

    async def userinfo(self, access_token: Secret) -> Mapping[str, Any]:
        """What the userinfo endpoint says (Core section 5.3); empty if there is none. Raises `IssuerUnavailable`."""
        metadata = await self.metadata()
        if metadata.userinfo_endpoint is None:
            return {}
        bearer = {"Authorization": f"Bearer {access_token.reveal()}"}
        reply = await self._ask("GET", metadata.userinfo_endpoint, headers=bearer)
        if len(reply.body) > MAX_TOKEN:
            raise IssuerUnavailable(f"its userinfo has more than {MAX_TOKEN // 1024} KiB")
        return _decoded(reply, dict[str, Any], "userinfo endpoint")

    async def _published(self, url: str, what: str) -> Reply:
        """What the issuer publishes. Raises `IssuerUnavailable`."""
        reply = await self._ask("GET", url)
        if reply.status != _OK:
            raise self._fail(f"it answered {reply.status} where its {what} should be")
        return reply

    async def _ask(self, method: str, url: str, **how: Any) -> Reply:
        if self._down is not None and self._monotonic() < self._down[0]:
            raise IssuerUnavailable(self._down[1])
        if self._asking >= AT_ONCE:
            raise IssuerUnavailable(f"{AT_ONCE} logins are waiting for it already")
        self._asking += 1
        try:
            reply = await self._http.request(
                method,
                url,
                **{**how, "headers": {"Accept": "application/json", **(how.get("headers") or {})}},
            )
        except Unreachable as error:
            raise self._fail(str(error)) from None
        finally:
            self._asking -= 1
        self._down = None
        return reply

    def _fail(self, reason: str) -> IssuerUnavailable:
        """Remember for `DOWN` seconds that the issuer cannot be used."""
        self._down = self._monotonic() + DOWN, reason
        _log.warning("the issuer cannot be used", issuer=self.settings.issuer, reason=reason)
        return IssuerUnavailable(reason)


def _error_code(reply: Reply) -> str:
    try:
        return json_input.decode(reply.body, _Error).error
    except ValueError:
        return str(reply.status)


def _decoded(reply: Reply, kind: type[T], where: str) -> T:
    """The JSON of an answer with status 200. Raises `IssuerUnavailable`, which is not remembered: other logins may work."""
    if reply.status != _OK:
        raise IssuerUnavailable(f"its {where} answered {reply.status}")
    try:
        return json_input.decode(reply.body, kind)
    except ValueError:
        raise IssuerUnavailable(
            f"its {where} did not answer with the JSON that it should"
        ) from None
