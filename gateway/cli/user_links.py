"""`users link --from`: links the users of a CSV file to their subjects at the issuer.

Each line is a change of its own. It can be repeated: a user who is linked already is left alone.

Tested in tests/gateway/cli/test_user_links.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gateway.cli.admin_port import Admin, Refused
from gateway.cli.from_file import at_once, read_file, refuse_faults
from gateway.cli.output import print_notice, refuse
from gateway.core.accounts import Origin
from gateway.core.csv_table import CsvFault
from gateway.core.user_links_csv import UserLink, read_user_links

_OF_ONE_USER: Final = frozenset({"not-found", "subject-in-use", "last-admin"})
"""Refusals that leave hope for the other lines."""


async def link_users(admin: Admin, file: Path) -> None:
    """Link the users of a file; the command ends with status 1 if any was refused."""
    links, faults = read_user_links(read_file(file))
    refuse_faults(faults)
    linked = 0

    async def link(row: UserLink) -> CsvFault | None:
        nonlocal linked
        try:
            await admin.change_user(row.user, {"origin": Origin.SSO, "subject": row.subject})
        except Refused as error:
            if error.code not in _OF_ONE_USER:
                raise
            return CsvFault(row.line, row.user, str(error))
        linked += 1
        return None

    try:
        refused = [fault for fault in await at_once(link, links) if fault is not None]
    except BaseException:
        print_notice(f"{linked:,} of {len(links):,} users were linked; run this again")
        raise
    for fault in refused:
        print_notice(str(fault))
    summary = f"{linked:,} of {len(links):,} users are linked to their subject"
    if refused:
        refuse(summary)
    print_notice(summary)
