"""Why an ICE is not connected, in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.admin.pages.ice import why_offline
from gateway.admin.pages.ices import Row
from gateway.core.ice import Ice, IceType, Status
from gateway.store.ice_listing import Listed
from gateway.store.sessions import Connection, ConnectionEvent

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def ago(seconds):
    return NOW - timedelta(seconds=seconds)


def event(kind, code=None, at=NOW, retry_after=None):
    return ConnectionEvent("lab-1", kind, code, "192.0.2.7", at, at, 1, retry_after)


def reason(*events, since=None):
    ice = Ice(
        "lab-1", IceType.NORMAL, "0" * 64, Status.REGISTERED, "alice", 1, "k", ago(9000), ago(8000)
    )
    connection = None if since is None else Connection("s", "node-a", since, "192.0.2.1")
    return why_offline(Row(Listed(ice, connection=connection), ()), list(events), NOW)[0]


@pytest.mark.parametrize(
    ("closed", "told"),
    [
        (("1012", ago(2), 2.5), "It was told to come back in 3 s."),
        (("1012", ago(62), 2.5), "It was told to come back in 3 s."),
        (("1012", ago(63), 2.5), "It was told to come back in 3 s, and it has not."),
        (("1012", ago(2), None), "It was told to come back."),
        (("4203", ago(2), None), "It has not tried to reconnect: is it running?"),
        (("1006", ago(2), None), "It has not tried to reconnect: is it running?"),
    ],
)
def test_an_ice_that_was_told_to_come_back_is_not_asked_for(closed, told):
    assert reason(event("closed", *closed)).endswith(f". {told}")


def test_a_connected_ice_has_a_reason_only_if_another_attempt_was_refused_since():
    refused = event("refused", "key-mismatch", ago(5))
    assert reason(refused, since=ago(4)) is None
    assert reason(event("admitted", at=ago(6)), since=ago(6)) is None
    told = reason(refused, since=ago(6))
    assert told.startswith("Another attempt was refused since. Another machine")
    assert told.endswith("Last refused: key-mismatch, from 192.0.2.7.")
    assert "strange, from" in reason(event("refused", "strange", ago(5)), since=ago(6))
