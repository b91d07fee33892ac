"""Whether an admin could log in by password while the issuer cannot be reached.

Tested in tests/contract/test_user_changes.py and tests/gateway/cli/test_serve.py.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from datetime import datetime

from gateway.core.login_rules import LoginRules
from gateway.store.accounts import administering
from gateway.store.engine import Fetch


async def missing_local_admin(fetch: Fetch, rules: LoginRules, now: datetime) -> str | None:
    """The command that provides such an admin; None if there is one, or no single sign-on."""
    if not rules.issuer or await administering(fetch, rules, now, 1):
        return None
    # An admin from before single sign-on, who has a password, only has to be marked.
    for name in await administering(fetch, replace(rules, required=False), now, 1):
        return f"ice-gateway users set-login {shlex.quote(name)} local"
    return "ice-gateway users add NAME --role admin"
