"""`ice-gateway api-tokens`: what scripts bring to the admin API."""

from __future__ import annotations

import click

from gateway.cli.common import (
    CommandContext,
    json_option,
    on_database,
    print_output,
    print_stderr,
    show_json,
    show_table,
    unwrap,
)
from gateway.core.accounts import ApiToken
from gateway.core.times import to_text, to_text_or_none
from gateway.runtime.setting_types import duration


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        try:
            return duration(value)
        except ValueError:
            self.fail(f"{value!r} is not a number with s, m, h or d, such as 90d", param, ctx)


@click.group("api-tokens")
def api_tokens() -> None:
    """Create, list and revoke the API tokens of users."""


@api_tokens.command()
@click.option("--user", required=True, help="Whose token it is: it may do what their role may.")
@click.option("--name", "label", required=True, help="A label, to tell tokens apart.")
@click.option("--ice", "ice_name", help="Let it operate this ICE, and do nothing else.")
@click.option(
    "--expires-in",
    type=_Duration(),
    default="90d",
    show_default=True,
    help="How long it is good; 0 for ever.",
)
@on_database
async def create(
    context: CommandContext, user: str, label: str, ice_name: str | None, expires_in: float
) -> None:
    """Create a token and print it, alone, this once."""
    made = unwrap(
        await context.services.accounts.create_token(
            context.actor, user, label, expires_in, ice_name
        )
    )
    limit = "" if made.token.ice_name is None else f", for {made.token.ice_name} alone"
    expires = to_text_or_none(made.token.expireson) or "never"
    print_stderr(f"token {made.token.id} of {made.token.user}{limit}, expires: {expires}")
    print_output(
        made.secret.reveal(),
        done=f"token {made.token.id} of {made.token.user} is made",
        remedy=f"it is lost: `ice-gateway api-tokens revoke {made.token.id}`, and create another",
    )


@api_tokens.command("list")
@json_option
@on_database
async def list_tokens(context: CommandContext, *, as_json: bool) -> None:
    """List all tokens; the tokens themselves are not kept."""
    found = await context.services.accounts.tokens()
    if as_json:
        show_json([_document(token) for token in found])
        return
    show_table(
        ("ID", "USER", "NAME", "ICE", "CREATED", "EXPIRES", "REVOKED"),
        [
            (
                token.id,
                token.user,
                token.label,
                token.ice_name,
                to_text(token.createdon),
                to_text_or_none(token.expireson),
                to_text_or_none(token.revokedon),
            )
            for token in found
        ],
    )


def _document(token: ApiToken) -> dict[str, object]:
    return {
        "id": token.id,
        "user": token.user,
        "name": token.label,
        "ice_name": token.ice_name,
        "createdon": to_text(token.createdon),
        "expireson": to_text_or_none(token.expireson),
        "revokedon": to_text_or_none(token.revokedon),
    }


@api_tokens.command()
@click.argument("token_id", metavar="ID")
@on_database
async def revoke(context: CommandContext, token_id: str) -> None:
    """Revoke a token at once."""
    unwrap(await context.services.accounts.revoke_token(context.actor, token_id))
