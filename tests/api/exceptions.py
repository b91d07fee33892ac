"""What schemathesis may find amiss with the API, and is right all the same: each with its reason.

Loaded by schemathesis (`held.py`), without the imports of the gateway. An exception holds for one check, some calls, and
one answer.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import Any

import schemathesis

from gateway.core.audit_event import ID_PATTERN


@dataclass(frozen=True)
class Exempt:
    """A failure of the class `failure`, of `calls` (operation ids; empty means every call), where the answer holds `answer`."""

    failure: str
    calls: frozenset[str]
    answer: frozenset[tuple[str, Any]]
    why: str

    def covers(self, failure: str, call: str, answer: Any) -> bool:
        """Whether it is this one."""
        return (
            failure == self.failure
            and (not self.calls or call in self.calls)
            and isinstance(answer, dict)
            and self.answer <= answer.items()
        )


def _exempt(failure: str, calls: str, answer: dict[str, Any], why: str) -> Exempt:
    return Exempt(failure, frozenset(calls.split()), frozenset(answer.items()), why)


EXEMPT = (
    _exempt(
        "RejectedPositiveData",
        "provisionIce reprovisionIce reregisterIce",
        {"status": 422, "field": "provisionedto"},
        "A schema cannot say which users there are.",
    ),
    _exempt(
        "RejectedPositiveData",
        "listIces listOperations listPools listSchedules listOccurrences listNodes listUsers listApiTokens listEnrolmentKeys"
        " listEnrolments listWebhooks listDeliveries listSetAside",
        {"status": 422, "field": "cursor"},
        "Nor which cursors: they are opaque, and come from the page before.",
    ),
    _exempt(
        "RejectedPositiveData",
        "listIces countIces",
        {"status": 422, "field": "version_below"},
        "Nor which texts PEP 440 reads as a version.",
    ),
    _exempt(
        "RejectedPositiveData",
        "listIces countIces",
        {"status": 422, "field": "pool"},
        "Nor which pools there are.",
    ),
    _exempt(
        "RejectedPositiveData",
        "bulk",
        {"status": 422},
        "Nor which members go together: names or a filter, as many generations as names.",
    ),
    _exempt(
        "RejectedPositiveData",
        "createSchedule changeSchedule",
        {"status": 422},
        "Nor what a cron expression or a time zone is.",
    ),
    _exempt(
        "RejectedPositiveData",
        "createWebhook changeWebhook",
        {"status": 422},
        "Nor which URLs may be called, or which characters are printable.",
    ),
    _exempt(
        "RejectedPositiveData",
        "describeIce setPool",
        {"status": 422},
        "Nor which characters are printable, or how many labels there are together; a pool's name is in the path.",
    ),
    _exempt(
        "RejectedPositiveData",
        "addUser changeUser setMyPassword createApiToken createEnrolmentKey",
        {"status": 422},
        "Nor that, nor which users and ICEs there are, nor which time is past.",
    ),
    _exempt(
        "RejectedPositiveData",
        "pauseIce",
        {"status": 422},
        "Nor which characters are printable, or what time it is.",
    ),
    *(
        _exempt(
            "RejectedPositiveData",
            "requestOperation requestPoolOperation",
            {"status": 422, "field": field},
            "Nor what time it is: a time may be past, too far ahead, or before another.",
        )
        for field in ("run_at", "deadline")
    ),
    _exempt(
        "RejectedPositiveData",
        "reprovisionIce reregisterIce deregisterIce disconnectIce pauseIce resumeIce",
        {"status": 412, "code": "stale"},
        "An If-Match of any other generation than the entry's is proper, and stale.",
    ),
    _exempt(
        "RejectedPositiveData",
        "putIce describeIce deleteIce",
        {"status": 405, "detail": "ICE Names cannot be changed or deleted"},
        "Described so that who looks for them finds the sentence; they refuse whatever is sent.",
    ),
    _exempt(
        "UseAfterFree",
        "showApiToken showEnrolmentKey",
        {"state": "revoked"},
        "What is revoked stays in the list, so that one sees that it is.",
    ),
    _exempt(
        "AllowHeaderMismatch",
        "bulk",
        {"status": 405},
        "The address is that of an ICE named bulk, too, whose methods Allow names.",
    ),
    *(
        _exempt(
            failure,
            "",
            answer,
            "Any call may get this answer, as the description says: a long address or header is refused before it is read.",
        )
        for failure in ("AcceptedNegativeData", "UndefinedStatusCode")
        for answer in (
            {"status": 414, "code": "uri-too-long"},
            {"status": 431, "code": "headers-too-large"},
        )
    ),
)


@schemathesis.hook
def filter_failure(context, failure, case, response) -> bool:
    """Keep a failure unless it is exempt."""
    call = case.operation.definition.raw.get("operationId")
    try:
        answer = response.json()
    except ValueError:
        answer = None
    return not any(exempt.covers(type(failure).__name__, call, answer) for exempt in EXEMPT)


@schemathesis.hook
def before_call(context, case, kwargs) -> None:
    """Expect nothing of the server, wait for no operation, begin a stream where something has happened, keep the own token.

    An expectation is 417 whatever the call is, as the description says of all of them. No ICE works here, so
    a request would wait for its operation for as long as it says. A stream says nothing for as long as nothing happens. Without its token every further call would be 401.
    """
    if case.headers:
        case.headers.pop("Expect", None)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if 0 <= float((case.query or {})["wait"]) <= float(os.environ["HELD_MAX_WAIT"]):
            case.query["wait"] = 0
    if case.path == "/events/stream" and re.fullmatch(
        ID_PATTERN, str(case.headers.get("Last-Event-ID", "0"))
    ):
        case.headers["Last-Event-ID"] = "0"
    own = {"id": os.environ["HELD_OWN_TOKEN"]}
    if (case.method, case.path, case.path_parameters) == ("DELETE", "/api-tokens/{id}", own):
        case.path_parameters["id"] = "none"
