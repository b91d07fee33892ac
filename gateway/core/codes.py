"""The words of the audit log and of failed operations. Pure.

What an ICE may meet (refusals, close codes) stands in `client.protocol`, what an admin may meet in `problems`.
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
    """Why an operation has ended without a result, as its `error` says; ICEs may say words of their own.

    `sentence` is what the gateway says where it knows no more.
    """

    sentence: str

    def __new__(cls, code: str, sentence: str) -> Self:
        """Make a member of its code, which is its value."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member

    CANCELLED = "cancelled", "it was cancelled"
    DEADLINE = "deadline", "its deadline has passed"
    DEREGISTERED = "deregistered", "the ICE was deregistered"
    REREGISTERED = "reregistered", "the ICE was reregistered"
    LOST = "lost", "the ICE came back without it and did not say what it came to"
    REFUSED = "refused", "the ICE has not accepted it"
    KIND_NOT_ALLOWED = "kind-not-allowed", "an ICE of this type is not sent this kind"
    FAILED = "failed", "the ICE gave no reason"
