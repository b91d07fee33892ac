"""Checks whether users can log in by single sign-on: for `ice-gateway doctor`.

It asks the issuer what a login would ask, and logs nobody in.
"""

from __future__ import annotations

import email.utils
import stat
from collections.abc import AsyncIterator
from typing import Final

from gateway.core.login_state import LoginState
from gateway.core.oidc import LEEWAY, Metadata, discovery_url
from gateway.core.secret import Secret
from gateway.core.times import Clock
from gateway.runtime.http_client import HttpClient, Unreachable
from gateway.runtime.settings import BadSetting, Settings
from gateway.runtime.sso_settings import SsoSettings, sso_settings
from gateway.services.diagnostics import Finding, failed, ok, warning
from gateway.services.issuer import Issuer, IssuerRefused, IssuerUnavailable, read_client_secret

_CHECK: Final = "sso"
_OTHERS: Final = 0o007
_REDIRECTS: Final = (302, 303)
_WRONG_CLIENT: Final = ("invalid_client", "unauthorized_client")


async def examine(settings: Settings, clock: Clock, *, seconds: float) -> list[Finding]:
    """The findings about single sign-on, if it is turned on; an answer of the issuer may take `seconds`."""
    try:
        found = sso_settings(settings)
        if found is None:
            return []
        read_client_secret(found.client_secret_file)
        async with HttpClient(found.ca_file, timeout=seconds) as http:
            return [each async for each in _issuer(found, http, clock)]
    except BadSetting as error:
        return [failed(_CHECK, str(error), "change what it names: the gateway does not start so")]


async def _issuer(settings: SsoSettings, http: HttpClient, clock: Clock) -> AsyncIterator[Finding]:
    path = settings.client_secret_file
    if path is not None and stat.S_IMODE(path.stat().st_mode) & _OTHERS:
        yield warning(_CHECK, f"{path} can be read by others", f"run `chmod o= {path}`")
    issuer = Issuer(settings, http)
    try:
        metadata = await issuer.metadata()
        await issuer.keys()
    except IssuerUnavailable as error:
        text = f"the issuer {settings.issuer} cannot be used: {error}"
        yield failed(_CHECK, text, "see sso.issuer, and whether this machine reaches it")
        return
    yield ok(_CHECK, f"{settings.issuer} has its metadata and its keys where they should be")
    yield await _clocks(settings, http, clock)
    for finding in _scopes(settings, metadata):
        yield finding
    if not metadata.backchannel_logout_supported:
        text = "the issuer does not announce back-channel logout: a logout there may not end the logins here"
        yield warning(
            _CHECK, text, f"logins end after sso.lifetime ({settings.lifetime:g} s) anyway"
        )
    yield await _client(issuer, clock)
    yield await _redirect_url(settings, metadata, http, clock)


async def _clocks(settings: SsoSettings, http: HttpClient, clock: Clock) -> Finding:
    try:
        reply = await http.request("GET", discovery_url(settings.issuer))
        theirs = email.utils.parsedate_to_datetime(reply.headers.get("date", ""))
        off = (theirs - clock()).total_seconds()
    except (Unreachable, ValueError, TypeError):
        return ok(_CHECK, "the issuer does not say what time it is")
    text = f"the issuer's clock differs by {abs(off):.0f} s"
    if abs(off) >= LEEWAY:
        return failed(_CHECK, text, f"set the clocks: beyond {LEEWAY:.0f} s no login is accepted")
    return ok(_CHECK, text)


def _scopes(settings: SsoSettings, metadata: Metadata) -> list[Finding]:
    wanted = metadata.scopes(settings.scopes, settings.groups_claim)
    offered = metadata.scopes_supported
    missing = [scope for scope in wanted if offered is not None and scope not in offered]
    if missing:
        text = f"the issuer does not offer the scope {', '.join(missing)}"
        return [warning(_CHECK, text, "see sso.scopes; or it offers them without saying so")]
    return [ok(_CHECK, f"the gateway asks for the scopes {' '.join(wanted)}")]


async def _client(issuer: Issuer, clock: Clock) -> Finding:
    """Ask for the tokens of a code that no issuer gave: the refusal says whether the client is known."""
    client = issuer.settings.client_id
    try:
        await issuer.exchange(Secret("ice-gateway-doctor"), LoginState.new("", clock()).verifier)
    except IssuerUnavailable as error:
        return failed(_CHECK, f"no tokens can be had: {error}", "see what it says")
    except IssuerRefused as error:
        if str(error) in _WRONG_CLIENT:
            text = f"the issuer does not accept the client {client} ({error})"
            return failed(_CHECK, text, "see sso.client_id and sso.client_secret_file")
        return ok(_CHECK, f"the issuer knows the client {client}")
    return failed(_CHECK, "the issuer gives tokens for any code", "do not use this issuer")


async def _redirect_url(
    settings: SsoSettings, metadata: Metadata, http: HttpClient, clock: Clock
) -> Finding:
    """Ask for a login without a person: an issuer that knows the URL sends its refusal there."""
    url = metadata.authorization_url(
        LoginState.new("", clock()),
        client_id=settings.client_id,
        redirect_url=settings.redirect_url,
        scopes=("openid",),
    )
    try:
        reply = await http.request(
            "GET", f"{url}&prompt=none"
        )  # OpenID Connect Core section 3.1.2.1
    except Unreachable as error:
        return failed(
            _CHECK, f"the page of the login cannot be reached: {error}", "see what it says"
        )
    sent_to = reply.headers.get("location", "")
    if reply.status in _REDIRECTS and sent_to.startswith(settings.redirect_url):
        return ok(_CHECK, f"the issuer sends browsers back to {settings.redirect_url}")
    text = f"the issuer did not confirm that it sends browsers back to {settings.redirect_url}"
    return warning(_CHECK, text, "compare it with the URL that is registered there for this client")
