"""`ice-gateway api-tokens`: the credentials of scripts that use the admin API.

Tested in tests/gateway/cli/test_cli.py and tests/gateway/admin/test_ice_api_tokens.py.
"""

from __future__ import annotations

import click
import msgspec

from gateway.cli.admin_port import Admin
from gateway.cli.output import print_output, print_stderr, show_list
from gateway.cli.parameters import DURATION, json_option
from gateway.cli.target import with_admin


@click.group("api-tokens")
def api_tokens() -> None:
    """Create, list and revoke the API tokens of users."""


@api_tokens.command()
@click.option("--user", required=True, help="The owner; the token has the rights of their role.")
@click.option("--name", "label", required=True, help="A label, to recognise the token by.")
@click.option("--ice", "ice_name", help="Let the token operate this ICE and do nothing else.")
@click.option("--pool", help="Let the token operate this pool and do nothing else.")
@click.option(
    "--accounts",
    "may_change_accounts",
    is_flag=True,
    help="Let the token change users and API tokens over the API.",
)
@click.option(
    "--expires-in",
    type=DURATION,
    default="90d",
    show_default=True,
    help="Lifetime; 0 for no expiry.",
)
@with_admin
async def create(
    admin: Admin,
    *,
    user: str,
    label: str,
    ice_name: str | None,
    pool: str | None,
    expires_in: float,
    may_change_accounts: bool,
) -> None:
    """Create a token and print only the token, which is never shown again."""
    new: dict[str, object] = {"user": user, "name": label, "accounts": may_change_accounts}
    if ice_name is not None:
        new["ice"] = ice_name
    if pool is not None:
        new["pool"] = pool
    created = await admin.create_api_token(new, lifetime=expires_in)
    token = created.api_token
    target = token.ice_name or (token.pool and f"the pool {token.pool}")
    limit = f", for {target} alone" if target else ""
    print_stderr(f"token {token.id} of {token.user}{limit}, expires: {token.expireson or 'never'}")
    print_output(
        created.token,
        done=f"token {token.id} of {token.user} is created",
        remedy=f"it is lost: `ice-gateway api-tokens revoke {token.id}`, and create another",
    )


@api_tokens.command("list")
@json_option
@with_admin
async def list_tokens(admin: Admin, *, as_json: bool) -> None:
    """List all tokens, the oldest first; the database holds only their hashes."""
    found = [token async for page in admin.api_tokens() for token in page]
    found.sort(key=lambda token: (token.createdon, token.id))
    headings = (
        *("ID", "USER", "NAME", "ICE", "POOL", "ACCOUNTS", "CREATED", "EXPIRES", "REVOKED"),
        *("LAST USED", "MADE BY", "STATE"),
    )
    show_list(list(map(msgspec.structs.asdict, found)), headings, as_json=as_json)


@api_tokens.command()
@click.argument("token_id", metavar="ID")
@with_admin
async def revoke(admin: Admin, token_id: str) -> None:
    """Revoke a token at once."""
    await admin.revoke_api_token(token_id)
