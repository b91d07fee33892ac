"""What an audit event says, in sentences or as `name: value`; for the audit page and an ICE's timeline.

Tested in tests/unit/admin/pages/test_event_text.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from gateway.core.audit_event import Actor, AuditAction, Event, Via
from gateway.core.enrolment import ACTOR_PREFIX, ANY_USER
from gateway.services.login_failures import FailureReason

_WHY_FAILED: Final[dict[str, str]] = {
    FailureReason.SSO_ONLY: "{user} may not log in by password.",
    FailureReason.SSO_GROUPS: "None of their groups has a role here.",
    FailureReason.SSO_NAME: "Their name is in use, or cannot be one of a user.",
    FailureReason.SSO_DISABLED: "They are disabled.",
}
_DECISIONS: Final[dict[str, str]] = {
    AuditAction.APPROVE_ENROLMENT: "Approved",
    AuditAction.REJECT_ENROLMENT: "Rejected",
}
_OF_SCHEDULES: Final = frozenset(
    {
        AuditAction.CREATE_SCHEDULE,
        AuditAction.CHANGE_SCHEDULE,
        AuditAction.DELETE_SCHEDULE,
        AuditAction.RUN_SCHEDULE,
    }
)

_OF_WEBHOOKS: Final = frozenset(
    {AuditAction.CREATE_WEBHOOK, AuditAction.CHANGE_WEBHOOK, AuditAction.DELETE_WEBHOOK}
)


def sentences(event: Event) -> list[str]:
    """What the event says in words; empty if its detail is shown as it is."""
    match event.action:
        case AuditAction.LOGIN_FAILED | AuditAction.SET_LOGIN:
            return [*_login_sentences(event)]
        case AuditAction.LABEL:
            return [*_label_sentences(event)]
        case AuditAction.PAUSE | AuditAction.RESUME:
            return [_pause_sentence(event)]
        case AuditAction.DUPLICATE:
            return [f"Two copies of it run: {copies_text(event)}."]
        case AuditAction.CREATE_ENROLMENT_KEY:
            return [_key_sentence(event.detail)]
        case AuditAction.REVOKE_ENROLMENT_KEY:
            return [f"Revoked the enrolment key {event.detail['name']} ({event.detail['id']})."]
        case AuditAction.REQUEST_ENROLMENT:
            return [f"{_machine(event.detail)} asked for {_wanted(event.detail)}."]
        case AuditAction.APPROVE_ENROLMENT | AuditAction.REJECT_ENROLMENT as action:
            machine, wanted = _machine(event.detail), _wanted(event.detail)
            key = f"with the enrolment key {event.detail['key']}"
            return [f"{_DECISIONS[action]} {machine}, which asked for {wanted} {key}."]
        case AuditAction.CREATE_POOL | AuditAction.CHANGE_POOL | AuditAction.DELETE_POOL as action:
            return [*_pool_sentences(action, event.detail)]
    return [
        *_webhook_sentences(event.action, event.detail),
        *_schedule_sentences(event.action, event.detail),
    ]


def _webhook_sentences(action: str, detail: Mapping[str, Any]) -> Iterator[str]:
    if action not in _OF_WEBHOOKS:
        return
    named = f"the webhook {detail['name']} ({detail['webhook']})"
    if action == AuditAction.CREATE_WEBHOOK:
        disabled = "" if detail["enabled"] else ", disabled"
        yield f"Made {named} to {detail['url']}: {', '.join(detail['events'])}{disabled}."
    elif action == AuditAction.DELETE_WEBHOOK:
        yield f"Deleted {named}."
    else:
        yield f"Changed {named}."
        if "name_before" in detail:
            yield f"Its name was {detail['name_before']}."
        if "enabled" in detail:
            yield "Enabled it." if detail["enabled"] else "Disabled it."
        if "url" in detail:
            yield f"It calls {detail['url']}, before: {detail['url_before']}."
        if "events" in detail:
            before = ", ".join(detail["events_before"])
            yield f"It gets {', '.join(detail['events'])}, before: {before}."


def _failure_sentences(event: Event) -> Iterator[str]:
    count, user = event.detail["count"], event.detail["user"]
    times = f"{count} failed login" + ("s" if count != 1 else "")
    yield f"{times} as {user}, the last from {event.actor.address}."
    subject, name = event.detail.get("subject"), event.detail.get("name")
    if subject is not None:
        called = "" if name is None else f" and the name {name}"
        yield f"The issuer gave the subject {subject}{called}."
    reason = _WHY_FAILED.get(event.detail.get("why", ""))
    if reason is not None:
        yield reason.format(user=user)


def _schedule_sentences(action: str, detail: Mapping[str, Any]) -> Iterator[str]:
    if action not in _OF_SCHEDULES:
        return
    named = f"the schedule {detail['name']} ({detail['schedule']})"
    if action == AuditAction.CREATE_SCHEDULE:
        disabled = "" if detail["enabled"] else ", disabled"
        yield f"Made {named}: {detail['cron']}, in {detail['timezone']}{disabled}."
    elif action == AuditAction.DELETE_SCHEDULE:
        yield f"Deleted {named}."
    elif action == AuditAction.RUN_SCHEDULE:
        yield f"Ran {named} now: operation {detail['operation']}."
    else:
        yield f"Changed {named}."
        for name, before in sorted(detail.items()):
            if name.endswith("_before") and name != "generation_before":
                what = name.removesuffix("_before")
                yield f"{what.replace('_', ' ').capitalize()}: {detail[what]}, before: {before}."
        if detail.get("params_changed"):
            yield "Changed its params."


def _login_sentences(event: Event) -> Iterator[str]:
    if event.action == AuditAction.SET_LOGIN:
        yield _origin_sentence(event.detail)
    else:
        yield from _failure_sentences(event)


def _origin_sentence(detail: Mapping[str, Any]) -> str:
    user, ended = detail["user"], detail["logins_ended"]
    ends = f"; {ended} login{'s' * (ended != 1)} ended" if ended else ""
    if detail["subject"] is None:
        return f"{user} is a local user{ends}."
    return f"{user} logs in by single sign-on, as {detail['subject']} of {detail['issuer']}{ends}."


def _pool_sentences(action: str, detail: Mapping[str, Any]) -> Iterator[str]:
    pool = detail["pool"]
    if action == AuditAction.CREATE_POOL:
        yield f"Made the pool {pool}: {_pool_text(detail)}."
        return
    if action == AuditAction.DELETE_POOL:
        revoked = detail["api_tokens_revoked"]
        tokens = f", and revoked its API tokens ({revoked:,})" if revoked else ""
        yield f"Deleted the pool {pool}{tokens}."
        return
    if "labels" in detail or "ice_type" in detail:
        yield f"Changed the ICEs of the pool {pool}: {_pool_text(detail)}."
        before = {
            name: detail[f"{name}_before"] for name in ("labels", "ice_type") if name in detail
        }
        yield f"Before: {_pool_text(before)}."
    if "description" in detail:
        yield f"Changed the description of the pool {pool}: {detail['description'] or 'removed'}"


def _pool_text(detail: Mapping[str, Any]) -> str:
    """Which ICEs belong to a pool, as far as the detail says."""
    parts = [f"{key}={value}" for key, value in sorted(detail.get("labels", {}).items())]
    if "ice_type" in detail:
        parts.append(f"type {detail['ice_type'] or 'normal or ci-cd'}")
    return ", ".join(parts)


def _label_sentences(event: Event) -> Iterator[str]:
    for key, value in sorted(event.detail.get("labels", {}).items()):
        yield f"Removed the label {key}." if value is None else f"Set the label {key}={value}."
    note = event.detail.get("note")
    if note is not None:
        yield f"Set the note: {note}" if note else "Removed the note."


def _pause_sentence(event: Event) -> str:
    if event.action == AuditAction.RESUME:
        return f"Resumed; {event.detail['pausedby']} had paused it."
    until, note = event.detail["until"], event.detail["note"]
    when = f"Paused until {until}" if until else "Paused until it is resumed"
    return f"{when}: {note}" if note else f"{when}."


def copies_text(event: Event) -> str:
    """From where the two copies of an event `duplicate` connect."""
    return " and ".join(
        f"from {copy['address']} ({copy['hostname'] or 'unknown host'})"
        for copy in event.detail["copies"]
    )


def _key_sentence(detail: dict[str, Any]) -> str:
    count, user = detail["max_uses"], detail["provisionedto"]
    of = {None: "", ANY_USER: ", whose users the machines name"}.get(user, f" of {user}")
    approval = ", each with an approval" if detail["approval"] else ""
    return (
        f"Made the enrolment key {detail['name']} ({detail['id']}) for {count:,} {detail['ice_type']}"
        f" ICE{'s' if count != 1 else ''} {detail['name_prefix']}…{of}, until {detail['expires']}{approval}."
    )


def _machine(detail: dict[str, Any]) -> str:
    return f"{detail['hostname']} (key pair {detail['key_thumbprint']})"


def _wanted(detail: dict[str, Any]) -> str:
    """The ICE that a machine asks for."""
    user = f" of {detail['provisionedto']}" if detail["provisionedto"] else ""
    replaces = ", which it replaces" if detail["replaces"] else ""
    return f"the ICE {detail['ice_name']}{user}{replaces}"


def actor_text(actor: Actor) -> str:
    """Who acted, in words: a user's name, or that of a machine that enrols."""
    if actor.via is Via.SCHEDULE:
        return f"A schedule of {actor.name}"
    key = actor.name.removeprefix(ACTOR_PREFIX)
    # No ICE has such a name, and no user acts through this channel.
    if actor.via == Via.ICE and key != actor.name:
        return f"A machine with the enrolment key {key}"
    return actor.name


def detail_parts(event: Event) -> list[str]:
    """The parts of the event's detail: its sentences, or `name: value` for each value."""
    return sentences(event) or [
        f"{name}: {value}"
        for name, value in sorted(event.detail.items())
        if name != "generation_before" and value is not None
    ]


def timeline_text(event: Event) -> str:
    """The event in one line of the timeline of its ICE."""
    told = sentences(event)
    if told:
        return " ".join(told)
    about = f"generation {event.generation}"
    if event.action in (AuditAction.REQUEST_OPERATION, AuditAction.CANCEL_OPERATION):
        about = f"{event.detail['kind']} {event.detail['operation']}"
    return f"{event.action} ({about})"
