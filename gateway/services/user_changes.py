"""What to change of a user, and why that is refused.

Tested in tests/contract/test_user_changes.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from gateway.core.accounts import Origin, User
from gateway.core.login_rules import SUBJECT_RULE, LoginRules, is_subject
from gateway.core.problems import Problem, invalid, problem, quoted
from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.services.leavers import LeaverIces, Left
from gateway.store import accounts
from gateway.store.engine import Transaction


@dataclass(frozen=True, slots=True)
class Change:
    """What to change of a user; None leaves it as it is.

    With `expected_hash` nothing is changed unless the password is still the one of that hash. `ices` says what
    becomes of the ICEs of a user who is disabled by this, or was before. `subject` goes with the origin `sso`.
    """

    role: Role | None = None
    disabled: bool | None = None
    password: Secret | None = None
    expected_hash: str | None = None
    ices: LeaverIces | None = None
    origin: Origin | None = None
    subject: str | None = None

    def apply(self, user: User, password_hash: str | None, issuer: str, now: datetime) -> User:
        """The user after the change; `password_hash` is that of the new password, `issuer` that of the settings."""
        if self.origin is Origin.LOCAL:
            user = user.made_local()
        elif self.subject is not None:
            user = user.linked(issuer, self.subject)
        disabledon = user.disabledon
        if self.disabled is not None:
            disabledon = (disabledon or now) if self.disabled else None
        return replace(
            user,
            role=self.role or user.role,
            disabledon=disabledon,
            password_hash=password_hash or user.password_hash,
        )


@dataclass(frozen=True, slots=True)
class Changed:
    """A user after a change, how many of their logins it ended, and what became of their ICEs, if it said so."""

    user: User
    logins_ended: int
    left: Left


def check_origin(origin: Origin | None, subject: str | None) -> Problem | None:
    """The refusal of the form of an origin and a subject to give a user."""
    if origin is not Origin.SSO:
        needs = "only together with the origin `sso`"
        return None if subject is None else invalid("subject", needs)
    if subject is None or not is_subject(subject):
        return invalid("subject", f"must be the issuer's `sub` of the user, {SUBJECT_RULE}")
    return None


def check_issuer(rules: LoginRules, origin: Origin | None) -> Problem | None:
    """The refusal of an origin to give a user, by the settings."""
    if origin is not Origin.SSO or rules.issuer:
        return None
    return invalid("origin", "`sso` needs an issuer: set sso.issuer in the settings")


async def refuse_login(
    transaction: Transaction, before: User, user: User, wanted: Change
) -> Problem | None:
    """The refusal of how the user would log in after the change of `before`."""
    if user.origin is not Origin.SSO:
        return None
    if wanted.password is not None:
        detail = f"{user.name} logs in by single sign-on alone: make them local first"
        return problem("no-password", detail)
    if user.identity == before.identity:
        return None
    subject = user.subject or ""
    owner = await accounts.find_by_subject(transaction, user.issuer or "", subject)
    if owner is None or owner.name == user.name:
        return None
    return problem("subject-in-use", f"the subject {quoted(subject)} is that of {owner.name}")


def ends_admin(rules: LoginRules, before: User, user: User) -> bool:
    """Whether a change takes away an admin, or one who counts by the rules."""
    role = before.administers and not user.administers
    return role or (rules.keeps_admin(before) and not rules.keeps_admin(user))


def last_admin(rules: LoginRules) -> Problem:
    """The refusal of a change after which nobody could administer."""
    if not rules.issuer:
        return problem("last-admin")
    return problem(
        "last-admin",
        "Nobody could administer while the issuer cannot be reached: give another local user the role and a"
        " password first.",
    )
