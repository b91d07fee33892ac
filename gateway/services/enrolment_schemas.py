"""The JSON objects of enrolment keys and enrolments, beside those of `services.schemas`.

Tested in tests/gateway/admin/api/test_enrolments.py.
"""

from __future__ import annotations

import msgspec

from gateway.core.enrolment import Enrolment, EnrolmentKey, EnrolmentState
from gateway.core.ice import IceType
from gateway.core.labels import Labels
from gateway.core.times import to_text
from gateway.services.enrolment_keys import KeyMade
from gateway.services.schemas import Time, described


class EnrolmentKeyDocument(msgspec.Struct, kw_only=True):
    """A key by which machines ask for an ICE: at most `max_uses` ICEs, until `expires`.

    `provisionedto` is their user, `*` if the machine names the user, null for ci-cd. With `approval` an admin
    decides on each.
    """

    id: str
    name: str
    ice_type: IceType
    provisionedto: str | None
    name_prefix: str
    labels: Labels
    max_uses: int
    uses: int
    expires: Time
    approval: bool
    createdby: str
    createdon: Time
    revokedon: Time | None


class EnrolmentKeyPage(msgspec.Struct):
    """Enrolment keys, newest first; `next` is the cursor of the next page, null at the end."""

    items: list[EnrolmentKeyDocument]
    next: str | None


class EnrolmentKeyMade(msgspec.Struct):
    """A new enrolment key with its secret, which is shown only this once."""

    enrolment_key: EnrolmentKeyDocument
    secret: str


class EnrolmentDocument(msgspec.Struct, kw_only=True):
    """A machine that asked for an ICE; `thumbprint` is that of its own key pair (RFC 7638).

    `replaces`: the ICE exists, and an approval reregisters it if it still has this `generation`.
    """

    id: str
    enrolment_key: str
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
    createdon: Time
    expires: Time
    decidedby: str | None
    decidedon: Time | None


class EnrolmentPage(msgspec.Struct):
    """Enrolments, oldest first; `next` is the cursor of the next page, null at the end."""

    items: list[EnrolmentDocument]
    next: str | None


def key_document(key: EnrolmentKey) -> EnrolmentKeyDocument:
    """Describe a key."""
    return described(EnrolmentKeyDocument, key, expires=to_text(key.expireson))


def made_document(made: KeyMade) -> EnrolmentKeyMade:
    """Describe a new key, with its secret."""
    return EnrolmentKeyMade(key_document(made.key), made.secret.reveal())


def enrolment_document(enrolment: Enrolment) -> EnrolmentDocument:
    """Describe an enrolment."""
    return described(
        EnrolmentDocument,
        enrolment,
        enrolment_key=enrolment.key_id,
        expires=to_text(enrolment.expireson),
    )
