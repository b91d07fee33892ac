"""Enrolment: the keys by which machines ask for an ICE of their own, and what becomes of such a request. Pure.

Source: docs/api.md and docs/protocol.md.
"""

from __future__ import annotations

import enum
import functools
import hmac
import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from gateway.core import base64url
from gateway.core.accounts import fold_user
from gateway.core.ice import Action, Ice, IceType, Status, actions_from, fold, valid_name
from gateway.core.labels import Labels
from gateway.core.secret import Secret
from gateway.core.times import to_text

ANY_USER: Final = "*"
"""As the user of a key: the machine names the user, and an admin approves."""
ACTOR_PREFIX: Final = "enrolment:"
"""A machine acts in the audit log under this and the id of its key."""
MIN_PREFIX: Final = 3
MAX_PREFIX: Final = 63
PREFIX_RULE: Final = (
    f"{MIN_PREFIX} to {MAX_PREFIX} characters: ASCII letters, digits, '.', '_' and '-',"
    " the first a letter or digit"
)
PREFIX_PATTERN: Final = f"[A-Za-z0-9][A-Za-z0-9._-]{{{MIN_PREFIX - 1},{MAX_PREFIX - 1}}}"
MAX_USES: Final = 10_000
MAX_LIFETIME: Final = timedelta(days=90)
DEFAULT_LIFETIME: Final = timedelta(days=7)
MAX_KEY_NAME: Final = 128
MAX_WAITING: Final = 1_000
"""Enrolments that may wait for an admin, for each key."""
WAITING_FOR: Final = timedelta(days=7)
"""How long an enrolment waits before it ends, and how long a decision against it is remembered."""
MAX_HOSTNAME: Final = 253
MAX_PLATFORM: Final = 128
_MAX_NAME: Final = 64
_PREFIX: Final = re.compile(PREFIX_PATTERN, re.ASCII)
_UNFIT: Final = re.compile(r"[^A-Za-z0-9._-]+", re.ASCII)
_RETRY: Final = (5.0, 300.0)
"""The range of seconds between two polls of a machine that waits."""

_SCHEME: Final = "iceek"
_RANDOM_BYTES: Final = 8
_MAC_BYTES: Final = 8
_SECRET_BYTES: Final = 32  # 256 random bits
_FORM: Final = re.compile(r"iceek_([0-9a-f]{32})_[A-Za-z0-9_-]{43}", re.ASCII)
ID_PATTERN: Final = "[0-9a-f]{32}"
MAC_PURPOSE: Final = b"enrolment-key-id"
"""What the keys that authenticate the ids are derived for."""


class EnrolmentState(enum.StrEnum):
    """What became of a request for an ICE."""

    WAITING = "waiting"
    """An admin has to approve it."""
    APPROVED = "approved"
    """The machine gets its token with its next poll."""
    REJECTED = "rejected"
    ENROLLED = "enrolled"
    """The ICE was provisioned."""
    ENDED = "ended"
    """The ICE has changed since, or the key was revoked."""


class KeyState(enum.StrEnum):
    """Whether machines can enrol with a key, and if not, why."""

    GOOD = "good"
    REVOKED = "revoked"
    EXPIRED = "expired"
    USED_UP = "used-up"
    DISABLED = "disabled"
    """The user of its ICEs is disabled."""


@dataclass(frozen=True, slots=True)
class EnrolmentKey:
    """A row of `enrolment_keys`; `secret_hash` is a SHA-256, never the secret.

    `provisionedto` is the user of the ICEs, or `ANY_USER`, or None for ci-cd.
    """

    id: str
    name: str
    secret_hash: str
    ice_type: IceType
    provisionedto: str | None
    name_prefix: str
    max_uses: int
    uses: int
    approval: bool
    createdby: str
    createdon: datetime
    expireson: datetime
    revokedon: datetime | None = None
    labels: Labels = field(default_factory=dict)

    def stands(self, now: datetime) -> bool:
        """Whether it was not revoked and has not expired."""
        return self.revokedon is None and now < self.expireson

    @property
    def used_up(self) -> bool:
        """Whether no further ICE may be provisioned with it."""
        return self.uses >= self.max_uses

    def state(self, now: datetime, *, user_disabled: bool) -> KeyState:
        """Its state at `now`; only with a `GOOD` key a new machine can enrol."""
        if self.revokedon is not None:
            return KeyState.REVOKED
        if not self.stands(now):
            return KeyState.EXPIRED
        if self.used_up:
            return KeyState.USED_UP
        return KeyState.DISABLED if user_disabled else KeyState.GOOD

    @property
    def place(self) -> str:
        """Its place in the order of listings."""
        return f"{to_text(self.createdon)} {self.id}"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A row of `enrolments`: a machine's request for an ICE.

    `generation` is that of the ICE: until an admin has decided, the one that the machine would replace (None:
    there is no such ICE), and later the one that was provisioned.
    """

    id: str
    key_id: str
    ice_name: str
    ice_type: IceType
    provisionedto: str | None
    hostname: str
    platform: str
    address: str
    thumbprint: str
    state: EnrolmentState
    replaces: bool
    generation: int | None
    createdon: datetime
    expireson: datetime
    decidedby: str | None = None
    decidedon: datetime | None = None

    @property
    def place(self) -> str:
        """Its place in the order of listings."""
        return f"{to_text(self.createdon)} {self.id}"

    def retry_after(self, now: datetime) -> int:
        """Seconds until the machine should ask again: a tenth of the time that it has waited."""
        least, most = _RETRY
        return round(min(max((now - self.createdon).total_seconds() / 10, least), most))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a machine asks for; the key decides on the rest."""

    hostname: str
    platform: str
    ice_name: str | None = None
    provisionedto: str | None = None


@dataclass(frozen=True, slots=True)
class BadField:
    """A field of a request or a key that is not valid, and why."""

    field: str
    reason: str


def new_secret(mac_key: bytes) -> tuple[str, Secret]:
    """The id and the secret of a new key; `mac_key` authenticates the id."""
    random = secrets.token_bytes(_RANDOM_BYTES)
    name = (random + _mac(mac_key, random)).hex()
    text = base64url.encode(secrets.token_bytes(_SECRET_BYTES))
    return name, Secret(f"{_SCHEME}_{name}_{text}")


def id_of(secret: Secret) -> str | None:
    """The id in a secret's text; None for what cannot be a secret."""
    found = _FORM.fullmatch(secret.reveal())
    return None if found is None else found[1]


@functools.lru_cache(maxsize=64)  # many machines have one key
def is_ours(key_id: str, mac_key: bytes) -> bool:
    """Whether the id was authenticated with `mac_key`."""
    data = bytes.fromhex(key_id)
    return hmac.compare_digest(data[_RANDOM_BYTES:], _mac(mac_key, data[:_RANDOM_BYTES]))


def _mac(mac_key: bytes, data: bytes) -> bytes:
    return hmac.digest(mac_key, data, "sha256")[:_MAC_BYTES]


def checked_prefix(text: str) -> str:
    """This text, which ICE names may begin with. Raises `ValueError`."""
    if not _PREFIX.fullmatch(text):
        raise ValueError(f"needs {PREFIX_RULE}")
    return text


def check_key(
    *,
    name: str,
    ice_type: IceType,
    provisionedto: str | None,
    name_prefix: str,
    max_uses: int,
    lifetime: timedelta,
    approval: bool,
) -> BadField | None:
    """What is wrong with a new key, apart from what only the tables show; None if nothing is."""
    if not 1 <= len(name) <= MAX_KEY_NAME or not name.isprintable():
        return BadField("name", f"must have 1 to {MAX_KEY_NAME} printable characters")
    if ice_type is IceType.CI_CD and provisionedto is not None:
        return BadField("provisionedto", "a ci-cd ICE has no user")
    if ice_type is IceType.NORMAL and provisionedto is None:
        return BadField("provisionedto", "a normal ICE needs a user")
    if provisionedto == ANY_USER and not approval:
        return BadField("provisionedto", "may be * only where an admin approves each enrolment")
    if not _PREFIX.fullmatch(name_prefix):
        return BadField("name_prefix", f"needs {PREFIX_RULE}")
    if not 1 <= max_uses <= MAX_USES:
        return BadField("max_uses", f"must be 1 to {MAX_USES:,}")
    if not timedelta() < lifetime <= MAX_LIFETIME:
        return BadField("expires", f"needs a time within the next {MAX_LIFETIME.days} days")
    return None


def name_for(key: EnrolmentKey, wanted: Wanted) -> str | BadField:
    """The name of the ICE that a machine asks for: what it names, or the key's prefix and its host name."""
    if wanted.ice_name is not None:
        if not valid_name(wanted.ice_name):
            return BadField("ice_name", "is not the name of an ICE")
        if not fold(wanted.ice_name).startswith(fold(key.name_prefix)):
            return BadField("ice_name", f"must begin with {key.name_prefix}")
        return wanted.ice_name
    label = wanted.hostname.partition(".")[0]
    fitting = _UNFIT.sub("-", label).strip("-._")[: _MAX_NAME - len(key.name_prefix)]
    if not fitting:
        return BadField("hostname", "gives no name for the ICE: name one by ice_name")
    return key.name_prefix + fitting


def user_for(key: EnrolmentKey, wanted: Wanted) -> str | BadField | None:
    """The name of the user that the ICE is for; None for ci-cd."""
    if key.provisionedto == ANY_USER:
        if wanted.provisionedto is None:
            return BadField("provisionedto", "this key needs the name of the ICE's user")
        return wanted.provisionedto
    if wanted.provisionedto is not None and (
        key.provisionedto is None or fold_user(wanted.provisionedto) != fold_user(key.provisionedto)
    ):
        return BadField("provisionedto", "this key is not for that user")
    return key.provisionedto


def can_replace(ice: Ice, ice_type: IceType, user: str | None) -> bool:
    """Whether an approved enrolment may reregister this ICE for a machine that was set up anew."""
    same_user = fold_user(ice.provisionedto or "") == fold_user(user or "")
    return ice.ice_type is ice_type and same_user and Action.REREGISTER in actions_from(ice.status)


def still_waits(enrolment: Enrolment, ice: Ice | None) -> bool:
    """Whether nothing has happened to the ICE since the machine asked for it."""
    if not enrolment.replaces:
        return ice is None
    return (
        ice is not None
        and ice.generation == enrolment.generation
        and can_replace(ice, enrolment.ice_type, enrolment.provisionedto)
    )


def may_renew(enrolment: Enrolment, ice: Ice | None) -> bool:
    """Whether the ICE still has the token that this enrolment made, so that a lost one may be replaced."""
    return (
        enrolment.state is EnrolmentState.ENROLLED
        and ice is not None
        and ice.status is Status.PROVISIONED
        and ice.generation == enrolment.generation
    )
