"""The settings of single sign-on, checked together.

Tested in tests/unit/runtime/test_sso_settings.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from gateway.core.addresses import is_loopback
from gateway.core.roles import Role
from gateway.runtime.settings import BadSetting, Settings

CALLBACK: Final = "/admin/sso/callback"
"""The path, below a public URL, to which the issuer sends a browser back."""
LOGIN: Final = "/admin/sso/login"
"""The path where a login begins."""


@dataclass(frozen=True, slots=True)
class SsoSettings:
    """Where and how users of an issuer log in. Durations are seconds.

    Attributes:
        issuer: its URL, as in the `iss` of its tokens.
        client_id: the gateway's id at the issuer.
        client_secret_file: has the gateway's secret there; None for a public client.
        ca_file: certificates to trust besides the system's, for the issuer alone.
        scopes: what is asked for; empty for what the issuer offers.
        username_claim: has the name of a user at their first login.
        groups_claim: has the groups of a user.
        roles: the role of each group.
        redirect_url: where the issuer sends a browser back.
        required: whether only local users log in by password.
        lifetime: of a login.
        tokens_after: the time without a login after which a user's API tokens rest; 0 for never.
    """

    issuer: str
    client_id: str
    client_secret_file: Path | None
    ca_file: Path | None
    scopes: tuple[str, ...]
    username_claim: str
    groups_claim: str
    roles: Mapping[str, Role]
    redirect_url: str
    required: bool
    lifetime: float
    tokens_after: float


def sso_settings(settings: Settings) -> SsoSettings | None:
    """The settings of single sign-on; None without an issuer.

    Raises:
        BadSetting: something is missing, or would send secrets over plain http.
    """
    if not settings.sso_issuer:
        if settings.sso_required:
            raise BadSetting("sso.required needs sso.issuer")
        return None
    for key, value in (("client_id", settings.sso_client_id), ("roles", settings.sso_roles)):
        if not value:
            raise BadSetting(f"sso.issuer needs sso.{key}")
    redirect_url = settings.sso_redirect_url or _redirect_url(settings)
    if not urlsplit(redirect_url).path.endswith(CALLBACK):
        raise BadSetting(f"sso.redirect_url {redirect_url} must end in {CALLBACK}")
    for key, url in (("issuer", settings.sso_issuer), ("redirect_url", redirect_url)):
        parts = urlsplit(url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise BadSetting(f"sso.{key} {url} is plain http: use https")
    return SsoSettings(
        issuer=settings.sso_issuer,
        client_id=settings.sso_client_id,
        client_secret_file=settings.sso_client_secret_file,
        ca_file=settings.sso_ca_file,
        scopes=settings.sso_scopes,
        username_claim=settings.sso_username_claim,
        groups_claim=settings.sso_groups_claim,
        roles=settings.sso_roles,
        redirect_url=redirect_url,
        required=settings.sso_required,
        lifetime=settings.sso_lifetime,
        tokens_after=settings.sso_tokens_after,
    )


def _redirect_url(settings: Settings) -> str:
    if len(settings.server_public_url) > 1:
        raise BadSetting(
            "sso.redirect_url is needed where server.public_url has several: name the one that the issuer knows, with"
            f" {CALLBACK}"
        )
    return settings.shown_url + CALLBACK
