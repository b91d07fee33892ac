"""`ice-gateway api-tokens`: the credentials of scripts that use the admin API.

Tested in tests/gateway/cli/test_cli.py and tests/gateway/admin/test_ice_api_tokens.py.
"""

from __future__ import annotations

import click
import msgspec

from gateway.cli.common import (
    DURATION,
    CommandContext,
    json_option,
    on_database,
    print_output,
    print_stderr,
    show_list,
    unwrap,
)
from gateway.core.times import to_text_or_none
from gateway.services import account_schemas


@click.group("api-tokens")
def api_tokens() -> None:
    """Create, list and revoke the API tokens of users."""


@api_tokens.command()
@click.option("--user", required=True, help="The owner; the token has the rights of their role.")
@click.option("--name", "label", required=True, help="A label, to recognise the token by.")
@click.option("--ice", "ice_name", help="Let the token operate this ICE and do nothing else.")
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
@on_database
async def create(
    context: CommandContext,
    user: str,
    label: str,
    ice_name: str | None,
    expires_in: float,
    *,
    may_change_accounts: bool,
) -> None:
    """Create a token and print only the token, which is never shown again."""
    created = unwrap(
        await context.services.accounts.create_token(
            *(context.actor, user, label, expires_in, ice_name),
            may_change_accounts=may_change_accounts,
        )
    )
    token = created.token
    limit = "" if token.ice_name is None else f", for {token.ice_name} alone"
    expires = to_text_or_none(token.expireson) or "never"
    print_stderr(f"token {token.id} of {token.user}{limit}, expires: {expires}")
    print_output(
        created.secret.reveal(),
        done=f"token {token.id} of {token.user} is created",
        remedy=f"it is lost: `ice-gateway api-tokens revoke {token.id}`, and create another",
    )


@api_tokens.command("list")
@json_option
@on_database
async def list_tokens(context: CommandContext, *, as_json: bool) -> None:
    """List all tokens by id; the database holds only their hashes."""
    documents = [
        msgspec.structs.asdict(account_schemas.api_token_document(token))
        for token in await context.services.accounts.tokens()
    ]
    headings = (
        *("ID", "USER", "NAME", "ICE", "ACCOUNTS", "CREATED", "EXPIRES", "REVOKED"),
        *("LAST USED", "MADE BY"),
    )
    show_list(documents, headings, as_json=as_json)


@api_tokens.command()
@click.argument("token_id", metavar="ID")
@on_database
async def revoke(context: CommandContext, token_id: str) -> None:
    """Revoke a token at once."""
    unwrap(await context.services.accounts.revoke_token(context.actor, token_id))
