"""The action codes of the audit log and the error codes of failed operations. Pure.

Refusals and close codes, which ICEs receive, are in `client.protocol`; refusals of the admin API in `problems`.
"""

from __future__ import annotations

import enum
from typing import Self


class AuditAction(enum.StrEnum):
    """What the audit log records besides the five actions of `ice.Action`."""

    DISCONNECT = "disconnect"
    REQUEST_OPERATION = "request-operation"
    CANCEL_OPERATION = "cancel-operation"
    ADD_USER = "add-user"
    SET_ROLE = "set-role"
    SET_PASSWORD = "set-password"  # noqa: S105 - an action
    DISABLE_USER = "disable-user"
    LOG_IN = "log-in"
    LOGIN_FAILED = "login-failed"
    END_LOGINS = "end-logins"
    CREATE_API_TOKEN = "create-api-token"  # noqa: S105 - an action
    REVOKE_API_TOKEN = "revoke-api-token"  # noqa: S105 - an action
    ROTATE_KEYS = "rotate-keys"
    PROMOTE_KEY = "promote-key"
    RETIRE_KEY = "retire-key"
    DRAIN_NODE = "drain-node"
    RESUME_NODE = "resume-node"
    PRUNE = "prune"
    BACKUP = "backup"
    RESTORE = "restore"
    CONFIRM_RESTORE = "confirm-restore"


class OperationError(enum.StrEnum):
    """The `code` of an operation's `error`: why it ended without a result. ICEs may send codes of their own.

    `sentence` is the message that the gateway uses when it has no better one.
    """

    sentence: str

    def __new__(cls, code: str, sentence: str) -> Self:
        """Make a member whose value is its code."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member

    CANCELLED = "cancelled", "it was cancelled"
    DEADLINE = "deadline", "its deadline has passed"
    DEREGISTERED = "deregistered", "the ICE was deregistered"
    REREGISTERED = "reregistered", "the ICE was reregistered"
    LOST = "lost", "the ICE reconnected without it and did not report its outcome"
    REFUSED = "refused", "the ICE has not accepted it"
    KIND_NOT_ALLOWED = "kind-not-allowed", "an ICE of this type does not accept this kind"
    FAILED = "failed", "the ICE gave no reason"
