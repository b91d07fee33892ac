"""Whether table, log and what everybody was told agree, looked at through a connection of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections import Counter
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from gateway.core.audit_event import GENESIS, Actor, Event, LogEntry, Via
from gateway.core.dpop import Jwk, thumbprint_of
from gateway.core.ice import Action, Ice, IceType, Status, WrongStatus
from gateway.core.secret import Secret
from gateway.core.times import from_text, from_text_or_none, later
from gateway.store.key_file import KeyStore
from tests.support.harness import settings_for
from tests.torture.story import BULK, NEWCOMER, Account, Call, Known, Told

_TTL = 7 * 86_400.0
_DROPS = {4101: {"deregister"}, 4102: {"reregister", "reprovision"}, 4201: {"disconnect"}}


@dataclass
class Found:
    """What the file holds."""

    rows: dict[str, Ice]
    entries: list[LogEntry]
    intact: list[str]


def read(path: Path) -> Found:
    """Open the file as after any crash, and read all of it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        intact = [text for (text,) in connection.execute("PRAGMA integrity_check")]
        intact += [
            f"foreign key of {row}" for row in connection.execute("PRAGMA foreign_key_check")
        ]
        rows = connection.execute(
            "SELECT ice_name, ice_type, ice_token, status, provisionedto, generation,"
            " key_thumbprint, provisionedon, registeredon, deregisteredon, expireson, key_id"
            " FROM ice_tokens"
        ).fetchall()
        events = connection.execute(
            "SELECT seq, at, actor, via, address, action, ice_name, generation, detail, previous"
            " FROM ice_events ORDER BY seq"
        ).fetchall()
    return Found(
        {
            row[0]: Ice(
                row[0],
                IceType(row[1]),
                row[2],
                Status(row[3]),
                *row[4:7],
                from_text(row[7]),
                *map(from_text_or_none, row[8:11]),
                key_id=row[11],
            )
            for row in rows
        },
        [
            LogEntry(
                seq,
                Event(
                    from_text(at),
                    Actor(actor, Via(via), address),
                    action,
                    name,
                    generation,
                    json.loads(detail),
                ),
                previous,
            )
            for seq, at, actor, via, address, action, name, generation, detail, previous in events
        ],
        intact,
    )


def disagreements(
    folder: Path, before: int, account: Account, known: dict[str, Known]
) -> list[str]:
    """Everything that does not agree; `before` is the number of the last event of the prologue."""
    found = read(folder / "ice.db")
    faults = [] if found.intact == ["ok"] else [f"the file is not intact: {found.intact}"]
    faults += rule_faults(found)
    new = [entry for entry in found.entries if entry.seq > before]
    faults += acknowledged(new, account.told)
    faults += _tokens(folder, found, account.told)
    faults += _whole_bulks(new, account.told)
    faults += _ices(found, new, account, known)
    return faults


def rule_faults(found: Found) -> list[str]:
    """What is wrong with the chain of the log, or with the table that must follow from it."""
    return _chain(found.entries) + _replay(found)


def _chain(entries: list[LogEntry]) -> list[str]:
    """Numbered without gaps, each with the digest of the one before."""
    faults, previous = [], GENESIS
    for seq, entry in enumerate(entries, 1):
        if entry.seq != seq:
            faults.append(f"event {seq} is numbered {entry.seq}")
        if entry.previous != previous:
            faults.append(f"event {seq} does not bear the digest of the one before")
        previous = entry.digest()
    return faults


def _replay(found: Found) -> list[str]:
    """The events, put through the rules, give exactly the table; a token's hash and key are not in them."""
    faults: list[str] = []
    ices: dict[str, Ice] = {}
    for entry in found.entries:
        event = entry.event
        if event.ice_name is None or event.action not in {*Action, "disconnect"}:
            continue
        old = ices.get(event.ice_name)
        new = _after(old, event)
        before = (None, None) if old is None else (old.generation, old.status)
        said = event.detail.get("generation_before"), event.detail.get("status_before")
        if isinstance(new, Ice) and new.generation == event.generation and said == before:
            ices[event.ice_name] = new
        else:
            faults.append(f"event {entry.seq} ({event.action}) cannot follow {old}: {new}")
    for name in ices.keys() | found.rows.keys():
        row, replayed = found.rows.get(name), ices.get(name)
        if row is not None and replayed is not None:
            replayed = replace(replayed, ice_token=row.ice_token, key_id=row.key_id)
        if row != replayed:
            faults.append(f"the table has {row}, its events give {replayed}")
        elif row is not None and (row.key_id is None) is not (row.status is Status.DEREGISTERED):
            faults.append(f"a token and the key that opens it do not go together: {row}")
    return faults


def _after(old: Ice | None, event: Event) -> Ice | WrongStatus | None:
    token = "not in the log"
    if event.action == Action.PROVISION:
        kind, user = IceType(event.detail["ice_type"]), event.detail["provisionedto"]
        return old or Ice.provision(
            event.ice_name,
            kind,
            user,
            token,
            key_id=None,
            now=event.at,
            expires=later(event.at, _TTL),
        )
    if old is None:
        return None
    if event.action in (Action.REPROVISION, Action.REREGISTER):
        at = max(event.at, old.provisionedon + timedelta(milliseconds=1))
        expires = later(event.at, _TTL)
        return old.renew(Action(event.action), token, key_id=None, now=at, expires=expires)
    if event.action == Action.REGISTER:
        return old.register(event.detail["key_thumbprint"], now=event.at)
    if event.action == Action.DEREGISTER:
        return old.deregister(token, now=event.at)
    return old if event.action == "disconnect" else None


def acknowledged(entries: list[LogEntry], told: list[Told]) -> list[str]:
    """As many events as were acknowledged, and at most those besides whose answer was lost."""
    done = Counter(
        (entry.event.actor.name, str(entry.event.action), entry.event.ice_name)
        for entry in entries
        if entry.event.actor.via is not Via.ICE
    )
    sure: Counter[tuple[str, str, str | None]] = Counter()
    perhaps: Counter[tuple[str, str, str | None]] = Counter()
    for one in told:
        for name in one.call.names:
            deed = one.call.admin, _event_of(one.call), name
            if one.status is None:
                perhaps[deed] += 1
            elif _succeeded(one, name):
                sure[deed] += 1
    return [
        f"{deed}: {done[deed]} events, {sure[deed]} acknowledged, {perhaps[deed]} unknown"
        for deed in done | sure
        if not sure[deed] <= done[deed] <= sure[deed] + perhaps[deed]
    ]


def _event_of(call: Call) -> str:
    return "deregister" if call.action == "bulk" else call.action


def _succeeded(told: Told, name: str) -> bool:
    if told.status is None or told.status >= 300:
        return False
    if told.call.action != "bulk":
        return True
    return any(item["ice_name"] == name and item["status"] == 200 for item in told.body["items"])


def _tokens(folder: Path, found: Found, told: list[Told]) -> list[str]:
    """Every token that was shown opens and says its generation; the current one is in the table."""
    keys = KeyStore(settings_for(folder).key_file)
    faults = []
    for one in told:
        if one.status is None or one.status >= 300 or "token" not in one.body:
            continue
        ice, name = one.body["ice"], one.call.names[0]
        opened = keys.open(Secret(one.body["token"]))
        if opened is None or (opened.ice_name, opened.generation) != (name, ice["generation"]):
            faults.append(f"the token shown by {one.call} does not open, or is another's")
            continue
        row = found.rows.get(name)
        if row is None or row.generation < ice["generation"]:
            faults.append(f"{one.call} was acknowledged, the table has {row}")
        elif row.generation == ice["generation"]:
            if row.ice_token != opened.digest:
                faults.append(f"the table does not know the token shown by {one.call}")
        elif row.ice_token == opened.digest:
            faults.append(f"the table still has the older token shown by {one.call}")
    return faults


def _whole_bulks(entries: list[LogEntry], told: list[Told]) -> list[str]:
    """All ICEs of a bulk action that nobody else touches, or none of them."""
    faults = []
    for one in told:
        if one.call.action == "bulk":
            names = {entry.event.ice_name for entry in entries} & set(BULK)
            if names not in (set(), set(BULK)):
                faults.append(f"half of {one.call} was done: {sorted(map(str, names))}")
    return faults


def _ices(
    found: Found, new: list[LogEntry], account: Account, known: dict[str, Known]
) -> list[str]:
    """Who was welcomed is registered with its own key; who was dropped was dropped for an event."""
    faults = []
    for heard in account.heard:
        events = [entry.event for entry in found.entries if entry.event.ice_name == heard.ice_name]
        thumbprint = thumbprint_of(Jwk(**known[heard.ice_name].key.jwk))
        if heard.what == "welcome" and not any(
            (event.action, event.generation, event.detail.get("key_thumbprint"))
            == ("register", heard.code, thumbprint)
            for event in events
        ):
            faults.append(f"{heard} without a registration in the log")
        if heard.what == "closed" and heard.code in _DROPS:
            actions = {
                entry.event.action for entry in new if entry.event.ice_name == heard.ice_name
            }
            if not actions & _DROPS[heard.code]:
                faults.append(f"{heard} without an event that demands it")
    registrations = sum(entry.event.action == Action.REGISTER for entry in new)
    welcomed = any(h.ice_name == NEWCOMER and h.what == "welcome" for h in account.heard)
    if registrations > 1 or (welcomed and registrations != 1):
        faults.append(f"{registrations} registrations of one ICE that came once")
    return faults


def digest(token: str) -> str:
    """The hash under which the table knows a token."""
    return hashlib.sha256(token.encode()).hexdigest()
