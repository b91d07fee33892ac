"""The report of `ice-client status`: the state of this ICE and what a person should do. Pure.

It is based on the state folder; the gateway may know better.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Final

import msgspec

from client import consent
from client.credentials import Token
from client.identity import Enrolment, State
from client.protocol import CLOSINGS, REFUSALS, Accepts, RefusalCode

_PASSING: Final = frozenset(
    {RefusalCode.DRAINING, RefusalCode.OVERLOADED, RefusalCode.STORE_UNAVAILABLE}
)
"""Refusals about which a person need not do anything."""
_ENROLMENT_OPTION: Final = "--enrolment-key-file"


@dataclass(frozen=True, slots=True)
class Found:
    """The content of a state folder.

    `named`: whether `--state-dir` was given; `running`: whether a client has locked the folder.
    """

    folder: str
    named: bool
    exists: bool
    has_key: bool
    token: Token | None
    state: State
    running: bool
    decision: Accepts | None = None
    """What `ice-client accept` has stored."""

    @property
    def admitted(self) -> bool:
        """Whether the stored token was the last one to be admitted."""
        return self.token is not None and self.state.admitted == self.token.digest()

    @property
    def accepts(self) -> list[str] | None:
        """The kinds that others may send; None for all."""
        return self.state.accepts if self.decision is None else self.decision.accepts

    @property
    def waiting(self) -> Enrolment | None:
        """The enrolment that an admin has to approve."""
        enrolment = self.state.enrolment if self.token is None else None
        return enrolment if enrolment and enrolment.id else None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The object that `status --json` prints. Times are RFC 3339."""

    ice_name: str | None
    ice_type: str | None
    gateway: str | None
    registered: bool
    connected: bool
    running: bool
    since: str | None
    """Since when it is connected, or is not."""
    next: str | None
    """When a running client tries to connect; a time in the past means that it is trying now."""
    code: str | int | None
    """The refusal, close code or error that ended the last attempt or session."""
    sentence: str | None
    must_act: bool
    """Whether a person must do more than start the client before this ICE can connect."""
    todo: str | None
    """What a person should do; null for nothing."""
    accepts: list[str] | None
    """The kinds that others than its user may send; null for all. It counts for nothing if it is `ci-cd`."""
    enrolment: str | None
    """The enrolment that an admin has to approve; null for none."""
    enrolment_since: str | None
    """Since when it waits."""
    state_dir: str


def report(found: Found) -> Report:
    """The report on a state folder."""
    state, running, enrolment = found.state, found.running, found.waiting
    # A client that was killed could not write when its connection ended.
    connected = state.connected and running
    since = state.since if connected == state.connected else None
    todo = _required_action(found)
    must_act = todo is not None
    if todo is None and not running:
        todo = f"start it: {_command(found)}"
    if todo is None and not connected and _has_advice(state):
        todo = state.sentence
    if todo is None and enrolment is not None:
        todo = f"ask the admin to approve enrolment {enrolment.id}"
    return Report(
        ice_name=state.ice_name,
        ice_type=state.ice_type,
        gateway=state.gateway,
        registered=found.admitted and state.registered and not state.moves,
        connected=connected,
        running=running,
        since=since,
        next=state.next if running and not connected else None,
        code=state.code,
        sentence=state.sentence,
        must_act=must_act,
        todo=todo,
        accepts=found.accepts,
        enrolment=enrolment.id if enrolment else None,
        enrolment_since=enrolment.since if enrolment else None,
        state_dir=found.folder,
    )


def _required_action(found: Found) -> str | None:
    """What a person must do before the client can connect; None for nothing."""
    state = found.state
    if found.token is None:
        if found.running:
            return None  # it enrols
        if state.must_act and isinstance(state.code, str):
            return state.sentence
        if _ENROLMENT_OPTION in state.options or found.waiting:
            return None
        return f"ask the admin for a registration token, then: {_command(found)} --token-file FILE"
    if found.admitted and state.registered and not found.has_key:
        return (
            "its key is missing, and the gateway admits no other: restore key.pem in the state folder from a"
            " backup, or ask the admin to reregister this ICE"
        )
    if not state.must_act:
        return None
    # The sentence of a refusal says what to do; that of a close code only what happened.
    rule = CLOSINGS.get(state.code) if isinstance(state.code, int) else None
    refusal = REFUSALS.get(rule.reason) if rule else None
    return refusal.detail if refusal else state.sentence


def _has_advice(state: State) -> bool:
    """Whether the sentence says what a person should do, although the client retries."""
    if state.code == "unreachable":
        return state.actionable
    return isinstance(state.code, str) and state.code not in _PASSING


def _command(found: Found) -> str:
    folder = ["--state-dir", found.folder] if found.named else []
    words = ["--gateway", found.state.gateway or "URL", *folder, *found.state.options]
    if found.waiting and _ENROLMENT_OPTION not in words:  # it was read from standard input
        words += [_ENROLMENT_OPTION, "FILE"]
    return f"ice-client run {shlex.join(words)}"


def lines(found: Found, report: Report, now: str) -> list[str]:
    """The report as lines for a person; `now` has the format of its times."""
    text = [f"state folder: {report.state_dir}{'' if found.exists else ' (does not exist yet)'}"]
    text.append(_registered(found, report))
    if report.accepts is not None and report.ice_type != "ci-cd":
        text.append(f"others may send: {consent.described(report.accepts)}")
    if report.connected:
        text.append(f"connected to {report.gateway} since {report.since}")
        return text
    since = f" since {report.since}" if report.since else ""
    why = f"{report.code}: {report.sentence}" if report.code is not None else None
    if report.running:
        text.append(f"not connected{since}{f': {why}' if why else ''}")
        later = report.next is not None and report.next > now
        trying = "it is trying to connect now" if found.token else "it is asking the gateway now"
        text.append(f"it tries again at {report.next}" if later else trying)
    else:
        text.append(f"not connected{since}: no client is running")
        if why:
            text.append(f"it last said {why}")
    if report.running and report.todo and report.todo == report.sentence:
        text.append("to do: what it says above; it tries again by itself")
    else:
        text.append(f"to do: {report.todo or 'nothing, it tries again by itself'}")
    return text


def _registered(found: Found, report: Report) -> str:
    name = report.ice_name or "this ICE"
    if report.ice_type:  # the gateway says it at the first admission
        name = f"{name} ({report.ice_type})"
    if report.registered:
        return f"{name} is registered at {report.gateway}"
    if found.waiting:
        return f"{name} is not registered: it waits for approval since {found.waiting.since} (enrolment {found.waiting.id})"
    if found.token is None and found.running:
        return f"{name} is not registered: it has no token yet, and asks for one"
    if found.token is None:
        key = ", only a key" if found.has_key else ""
        return f"{name} is not registered: it has no token{key}"
    if found.state.moves:
        return f"{name} moves from {found.state.home} to {report.gateway}, which has not admitted it yet"
    if found.admitted:
        return f"{name} is not registered any more"
    return f"{name} is not registered yet: its token has not been admitted"
