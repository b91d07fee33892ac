"""`ice-gateway enrolment-keys`: the keys by which machines ask for an ICE of their own.

Tested in tests/gateway/cli/test_enrolments.py.
"""

from __future__ import annotations

from datetime import timedelta

import click

from gateway.cli.admin_port import Admin
from gateway.cli.output import print_output, print_stderr, show_json, show_members, show_table
from gateway.cli.parameters import Parsed, duration_option, json_option, label_changes
from gateway.cli.target import with_admin
from gateway.core.enrolment import MAX_LIFETIME, MAX_USES, checked_prefix
from gateway.core.ice import IceType
from gateway.core.times import to_text, utc_now
from gateway.runtime.setting_types import duration_between


@click.group("enrolment-keys")
def enrolment_keys() -> None:
    """Make, list, show and revoke the keys by which machines ask for an ICE of their own."""


@enrolment_keys.command()
@click.argument("name")
@click.option(
    "--type",
    "ice_type",
    type=click.Choice([kind.value for kind in IceType]),
    required=True,
    help="normal: a person works with the ICE; ci-cd: machines do.",
)
@click.option(
    "--prefix",
    "name_prefix",
    type=Parsed("prefix", checked_prefix),
    required=True,
    help="What the names of the ICEs begin with.",
)
@click.option(
    "--user",
    "provisionedto",
    help="The user of normal ICEs; '*' with --approval: the machine names the user.",
)
@click.option(
    "--uses",
    "max_uses",
    type=click.IntRange(1, MAX_USES),
    default=1,
    show_default=True,
    help="The number of ICEs that may be made with the key.",
)
@click.option(
    "--expires-in",
    type=duration_option(
        duration_between(1, MAX_LIFETIME.total_seconds()), f"at most {MAX_LIFETIME.days}d"
    ),
    default="7d",
    show_default=True,
    help=f"Lifetime of the key, at most {MAX_LIFETIME.days}d.",
)
@click.option("--approval", is_flag=True, help="Let an admin decide on each machine.")
@click.option(
    "--label", multiple=True, metavar="KEY=VALUE", help="A label of the ICEs; may be repeated."
)
@with_admin
async def create(
    admin: Admin,
    name: str,
    *,
    ice_type: str,
    name_prefix: str,
    provisionedto: str | None,
    max_uses: int,
    expires_in: float,
    approval: bool,
    label: tuple[str, ...],
) -> None:
    """Make a key called NAME and print only its secret, which is never shown again."""
    made = await admin.create_enrolment_key(
        {
            "name": name,
            "ice_type": ice_type,
            "name_prefix": name_prefix,
            "provisionedto": provisionedto,
            "max_uses": max_uses,
            "expires": to_text(utc_now() + timedelta(seconds=expires_in)),
            "approval": approval,
            "labels": label_changes(label),
        }
    )
    key = made.enrolment_key
    print_stderr(
        f"enrolment key {key.id} for {key.max_uses} ICE{'' if key.max_uses == 1 else 's'},"
        f" expires: {key.expires}"
    )
    print_output(
        made.secret,
        done=f"the enrolment key {key.id} is made",
        remedy=f"its secret is lost: `ice-gateway enrolment-keys revoke {key.id}`, and make another",
    )


@enrolment_keys.command("list")
@json_option
@with_admin
async def list_keys(admin: Admin, *, as_json: bool) -> None:
    """List all keys, the newest first; the database holds only hashes of their secrets."""
    found = [key async for page in admin.enrolment_keys() for key in page]
    if as_json:
        show_json(found)
        return
    show_table(
        ("ID", "NAME", "TYPE", "USER", "PREFIX", "USES", "APPROVAL", "EXPIRES", "REVOKED"),
        [
            (
                key.id,
                key.name,
                key.ice_type,
                key.provisionedto,
                key.name_prefix,
                f"{key.uses} of {key.max_uses}",
                "yes" if key.approval else "no",
                key.expires,
                key.revokedon,
            )
            for key in found
        ],
    )


@enrolment_keys.command()
@click.argument("key_id", metavar="ID")
@json_option
@with_admin
async def show(admin: Admin, key_id: str, *, as_json: bool) -> None:
    """Show one key."""
    document = await admin.enrolment_key(key_id)
    if as_json:
        show_json(document)
    else:
        show_members(document)


@enrolment_keys.command()
@click.argument("key_id", metavar="ID")
@with_admin
async def revoke(admin: Admin, key_id: str) -> None:
    """Revoke a key at once and end the enrolments that wait for it; its ICEs stay."""
    await admin.revoke_enrolment_key(key_id)
