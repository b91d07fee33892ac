"""The rules of an ICE: its types, statuses, names, and the five actions as one table.

Pure: no I/O and no clock. The migrations of `store` repeat the rules as CHECKs. Source: docs/administration.md.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Final

from client.protocol import CloseCode, OperationKind, RefusalCode

NAME_RULE: Final = (
    "1 to 64 characters: ASCII letters, digits, '.', '_' and '-', the first a letter or digit"
)
NAME_PATTERN: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_NAME: Final = re.compile(NAME_PATTERN, re.ASCII)


class IceType(enum.StrEnum):
    """A person uses a `normal` ICE (ad hoc), machines use a `ci-cd` one."""

    NORMAL = "normal"
    CI_CD = "ci-cd"


class Status(enum.StrEnum):
    """The status of an entry. A name without an entry is *not registered*."""

    PROVISIONED = "provisioned"
    REGISTERED = "registered"
    DEREGISTERED = "deregistered"


class Action(enum.StrEnum):
    """The actions that change a row of `ice_tokens`; each is one compare-and-set."""

    PROVISION = "provision"
    REPROVISION = "reprovision"
    REGISTER = "register"
    REREGISTER = "reregister"
    DEREGISTER = "deregister"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table of actions.

    `sources` are the statuses that allow it (None: no row). `renews`: it replaces the token, and the generation
    grows by one. `closes` is the close code for the ICE's session.
    """

    sources: tuple[Status | None, ...]
    target: Status
    renews: bool
    closes: CloseCode | None = None


# The gateway refuses every combination that is not in this table.
RULES: Final[Mapping[Action, Rule]] = MappingProxyType(
    {
        Action.PROVISION: Rule((None,), Status.PROVISIONED, renews=True),
        Action.REPROVISION: Rule((Status.PROVISIONED,), Status.PROVISIONED, renews=True),
        Action.REGISTER: Rule((Status.PROVISIONED,), Status.REGISTERED, renews=False),
        # From `deregistered` too: a name can never be deleted, so a mistake must not make it unusable.
        Action.REREGISTER: Rule(
            (Status.REGISTERED, Status.DEREGISTERED),
            Status.PROVISIONED,
            renews=True,
            closes=CloseCode.TOKEN_REPLACED,
        ),
        Action.DEREGISTER: Rule(
            (Status.REGISTERED,),
            Status.DEREGISTERED,
            renews=True,
            closes=CloseCode.DEREGISTERED,
        ),
    }
)

OPERATIONS: Final[Mapping[IceType, tuple[OperationKind, ...]]] = MappingProxyType(
    {
        IceType.NORMAL: tuple(OperationKind),
        IceType.CI_CD: (OperationKind.REMOTE_EXECUTE, OperationKind.SCHEDULE),
    }
)
"""The operation kinds that each type accepts from any requester."""


def valid_name(name: str) -> bool:
    """Whether `name` obeys `NAME_RULE`."""
    return _NAME.fullmatch(name) is not None


def fold(name: str) -> str:
    """The case-folded name, which is unique: ASCII letters in lower case, like SQL's lower()."""
    return name.encode(errors="surrogatepass").lower().decode(errors="surrogatepass")


def actions_from(status: Status | None) -> tuple[Action, ...]:
    """The actions that the table allows from `status`, in the order of the table."""
    return tuple(action for action, rule in RULES.items() if status in rule.sources)


@dataclass(frozen=True, slots=True)
class WrongStatus:
    """A refusal by the table: `action` is not allowed from `status`."""

    ice_name: str
    action: Action
    status: Status

    @property
    def sentence(self) -> str:
        """The status, and what an admin may do from it."""
        # Only the ICE itself can register.
        may = [action for action in actions_from(self.status) if action is not Action.REGISTER]
        return (
            f"{self.ice_name} is {self.status}, so it cannot be {_PAST[self.action]}; "
            f"it can be {' or '.join(_PAST[action] for action in may)}"
        )


_PAST: Final = {
    Action.PROVISION: "provisioned",
    Action.REPROVISION: "reprovisioned",
    Action.REGISTER: "registered",
    Action.REREGISTER: "reregistered",
    Action.DEREGISTER: "deregistered",
}


@dataclass(frozen=True, slots=True)
class Ice:
    """A row of `ice_tokens`. Times are aware, in UTC; `ice_token` is a SHA-256, never the token."""

    ice_name: str
    ice_type: IceType
    ice_token: str
    status: Status
    provisionedto: str | None
    generation: int
    key_thumbprint: str | None
    provisionedon: datetime
    registeredon: datetime | None = None
    deregisteredon: datetime | None = None
    expireson: datetime | None = None
    key_id: str | None = None
    """The key that sealed the token; None if unknown or not needed (`deregistered`)."""

    @classmethod
    def provision(
        cls,
        ice_name: str,
        ice_type: IceType,
        provisionedto: str | None,
        ice_token: str,
        *,
        key_id: str | None,
        now: datetime,
        expires: datetime | None,
    ) -> Ice:
        """A new ICE of generation 1. Raises ValueError for a bad name or user."""
        if not valid_name(ice_name):
            raise ValueError(f"an ICE name has {NAME_RULE}")
        if (provisionedto is None) is not (ice_type is IceType.CI_CD):
            raise ValueError("a normal ICE has one user, a ci-cd ICE has none")
        return cls(
            ice_name,
            ice_type,
            ice_token,
            Status.PROVISIONED,
            provisionedto,
            1,
            None,
            provisionedon=now,
            expireson=expires,
            key_id=key_id,
        )

    def refuses(self, action: Action) -> WrongStatus | None:
        """The refusal of `action`; None if the table allows it."""
        if self.status in RULES[action].sources:
            return None
        return WrongStatus(self.ice_name, action, self.status)

    def renew(
        self,
        action: Action,
        ice_token: str,
        *,
        key_id: str | None,
        now: datetime,
        expires: datetime | None,
        owner: str | None = None,
    ) -> Ice | WrongStatus:
        """Replace the token, by `REPROVISION` or `REREGISTER`; `owner` is the user from now on, if another."""
        return self.refuses(action) or replace(
            self,
            provisionedto=owner or self.provisionedto,
            status=RULES[action].target,
            ice_token=ice_token,
            generation=self.generation + 1,
            key_thumbprint=None,
            provisionedon=now,
            registeredon=None,
            deregisteredon=None,
            expireson=expires,
            key_id=key_id,
        )

    def register(self, key_thumbprint: str, *, now: datetime) -> Ice | WrongStatus:
        """Bind the key at the ICE's first admitted connection."""
        return self.refuses(Action.REGISTER) or replace(
            self,
            status=RULES[Action.REGISTER].target,
            key_thumbprint=key_thumbprint,
            registeredon=now,
            expireson=None,
        )

    def deregister(self, ice_token: str, *, now: datetime) -> Ice | WrongStatus:
        """End the ICE's registration; `ice_token` is the hash of a new token, which is never shown."""
        return self.refuses(Action.DEREGISTER) or replace(
            self,
            status=RULES[Action.DEREGISTER].target,
            ice_token=ice_token,
            generation=self.generation + 1,
            key_thumbprint=None,
            deregisteredon=now,
            expireson=None,
            key_id=None,
        )

    def expired(self, now: datetime) -> bool:
        """Whether the token was not used for registration in time."""
        return self.expireson is not None and now >= self.expireson

    def judge(
        self,
        ice_type: str,
        generation: int,
        ice_token: str,
        key_thumbprint: str,
        now: datetime,
        *,
        made_for: str | None = None,
    ) -> RefusalCode | None:
        """The refusal for a genuine token with a valid proof, in the order of docs/protocol.md.

        `made_for` is the thumbprint of the key that alone may register with the token, if it was made for one.
        None means that the ICE may register (`provisioned`) or connect (`registered`).
        """
        current = generation == self.generation
        if generation > self.generation or ice_type != self.ice_type:
            return RefusalCode.TOKEN_INVALID
        if current and ice_token != self.ice_token:
            return RefusalCode.TOKEN_INVALID
        if self.status is Status.DEREGISTERED:
            return RefusalCode.DEREGISTERED
        if not current:
            return RefusalCode.TOKEN_REPLACED
        if self.status is Status.PROVISIONED:
            if self.expired(now):
                return RefusalCode.TOKEN_EXPIRED
            return None if made_for in (None, key_thumbprint) else RefusalCode.KEY_MISMATCH
        return None if key_thumbprint == self.key_thumbprint else RefusalCode.KEY_MISMATCH
