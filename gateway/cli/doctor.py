"""`ice-gateway doctor`.

Tested in tests/gateway/services/test_doctor.py.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from gateway.cli.common import only_on_a_database, read_settings, settings_file, settings_options
from gateway.cli.output import print_output, refuse, show_json
from gateway.cli.parameters import json_option
from gateway.core.text import printable_line
from gateway.core.times import utc_now
from gateway.runtime.setting_sources import load, misspelt_variables
from gateway.runtime.settings import BadSetting
from gateway.services.diagnostics import Finding, Level, failed, warning


@click.command()
@settings_options
@json_option
def doctor(config: Path | None, database: str | None, *, as_json: bool) -> None:
    """Check settings, database, keys, files, disk, port, TLS, file handles, clock and single sign-on.

    Changes nothing. Exit status 1 where a check has failed; run it as the gateway's user.
    """
    only_on_a_database(config, database)
    findings = asyncio.run(_examine(config, database))
    if as_json:
        show_json(findings)
    else:
        print_output("\n".join(map(_line, findings)))
    bad = sum(finding.level is Level.FAILED for finding in findings)
    if bad:
        refuse(f"{bad} of {len(findings)} findings {'is' if bad == 1 else 'are'} FAILED")


async def _examine(config: Path | None, database: str | None) -> list[Finding]:
    from gateway.services.doctor import Doctor

    try:
        settings = read_settings(config, {"database.url": database}, load)
    except BadSetting as error:
        return [failed("settings", str(error), "correct it: nothing else could be checked")]
    misspelt = [
        warning("settings", text, "rename it, or unset it")
        for text in misspelt_variables(os.environ)
    ]
    return misspelt + await Doctor(settings, settings_file(config), clock=utc_now).examine()


def _line(finding: Finding) -> str:
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    return f"{finding.level:<8} {finding.check:<9} {printable_line(finding.text + remedy)}"
