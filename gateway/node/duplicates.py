"""Finds duplicates among new hellos, by `core.duplicates`, and logs them.

Tested in tests/contract/test_duplicates.py and tests/cluster/test_duplicates.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec.structs import asdict, replace

from gateway.core.audit_event import Actor, AuditAction, Event, Via
from gateway.core.duplicates import Duplicate, event_is_due, follow
from gateway.core.times import to_text
from gateway.store import events, instances
from gateway.store.engine import Transaction
from gateway.store.instances import Greeting


async def record(transaction: Transaction, greetings: Sequence[Greeting]) -> int:
    """Store the instances that said hello, in the order of their sessions; returns how many events this logs."""
    names = await instances.changed(transaction, greetings) if greetings else []
    if not names:
        return 0
    known = await instances.read(transaction, names)
    found: dict[str, datetime] = {}
    due: list[Event] = []
    for greeting in greetings:
        stored = known.get(greeting.ice_name)
        if stored is None or stored.generation != greeting.generation:
            continue
        newest = (greeting.reading, to_text(greeting.at))
        if newest < stored.newest:
            # Another node has stored a newer session, or this batch is written again.
            continue
        history, duplicate = follow(stored.history, greeting.copy, greeting.at)
        stored = replace(stored, newest=newest, history=history)
        if duplicate is not None:
            found[greeting.ice_name] = greeting.at
            if event_is_due(stored.logged, greeting.at):
                due.append(_event(greeting, duplicate))
                stored = replace(stored, logged=greeting.at)
        known[greeting.ice_name] = stored
    await instances.write(transaction, known)
    if found:
        await instances.mark(transaction, found)
    if due:
        events.append(transaction, due)
    return len(due)


def _event(greeting: Greeting, duplicate: Duplicate) -> Event:
    # The actor is the ICE that came back, as for a registration.
    return Event(
        greeting.at,
        Actor(greeting.ice_name, Via.ICE, greeting.copy.address),
        AuditAction.DUPLICATE,
        greeting.ice_name,
        greeting.generation,
        {
            "generation_before": greeting.generation,
            "copies": [asdict(duplicate.returned), asdict(duplicate.superseded)],
        },
    )
