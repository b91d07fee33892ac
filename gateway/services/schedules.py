"""Makes, changes, deletes and runs schedules, and decides on their occurrences; each in one transaction.

`node.scheduler` says when there may be something to decide on. `core.schedule` has the rules.

Tested in tests/contract/test_schedule_life.py.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import structlog

from client.protocol import OperationKind
from gateway.core.audit_event import Actor, AuditAction, Event, Via, differences
from gateway.core.ice import Ice
from gateway.core.operation import NotValid, Operation
from gateway.core.problems import Problem, invalid, problem
from gateway.core.roles import Caller
from gateway.core.schedule import (
    DEFAULT_GRACE,
    DEFAULT_TIMEOUT,
    MAX_OF_TARGET,
    MAX_SCHEDULES,
    Changes,
    Occurrence,
    Schedule,
    Target,
)
from gateway.core.schedule_access import may_schedule
from gateway.core.times import Clock
from gateway.services.operation_requests import OperationService, refusal
from gateway.services.pools import no_pool
from gateway.store import accounts, events, ices, pools, schedules
from gateway.store.engine import Damaged, Engine, StoreUnavailable, Transaction
from gateway.store.schedules import Schedules

NO_SCHEDULE: Final = problem("not-found", "There is no such schedule.")
_BATCH: Final = 100

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class WantedSchedule:
    """A schedule as a caller asks for it; `params` is JSON, `timeout` and `grace` are seconds."""

    name: str
    cron: str
    timezone: str
    params: bytes = b"{}"
    ice_name: str | None = None
    pool: str | None = None
    timeout: int = DEFAULT_TIMEOUT
    grace: int = DEFAULT_GRACE
    enabled: bool = True


class ScheduleService:
    """Every method raises `StoreUnavailable`. Who may do what is for the caller to check (`core.schedule_access`).

    There may be `of_target` schedules of an ICE or pool, and `in_all`. `decided` is called with each occurrence that
    this process decided on.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        requests: OperationService,
        of_target: int = MAX_OF_TARGET,
        in_all: int = MAX_SCHEDULES,
        decided: Callable[[Occurrence], None] = lambda _: None,
    ) -> None:
        self._decided = decided
        self._of_target, self._in_all = of_target, in_all
        self._engine = engine
        self._clock = clock
        self._requests = requests
        self._rows = Schedules(engine.fetch)

    # --- what callers ask for ------------------------------------------------------------------------

    def prepare(self, actor: Actor, new: WantedSchedule) -> Schedule | Problem:
        """Validate a request without its ICE or pool; returns the schedule to `create`."""
        now = self._clock()
        wanted = Schedule(
            secrets.token_hex(8),
            new.name,
            new.ice_name,
            new.pool,
            new.params,
            new.cron,
            new.timezone,
            actor.name,
            actor.via,
            now,
            new.timeout,
            new.grace,
            new.enabled,
        )
        try:
            return wanted.checked(now)
        except NotValid as fault:
            return invalid(fault.field, str(fault))

    def checked(self, changes: Changes) -> Changes | Problem:
        """`changes`, or the value in them that no schedule can have."""
        try:
            Schedule.check(changes, self._clock())
        except NotValid as fault:
            return invalid(fault.field, str(fault))
        return changes

    async def create(self, actor: Actor, prepared: Schedule) -> Schedule | Problem:
        """Store a schedule that `prepare` has validated."""

        async def unit(transaction: Transaction) -> Schedule | Problem:
            new, ice = prepared, None
            if new.pool is not None:
                # Locked, so that nobody deletes the pool meanwhile.
                pool = await pools.find(transaction, new.pool)
                if pool is None:
                    return no_pool(new.pool or "")
                new = replace(new, pool=pool.name)
            else:
                ice = await ices.find(transaction, new.ice_name or "")
                if ice is None:
                    return problem("not-registered")
                new = replace(new, ice_name=ice.ice_name)
            of_target, total = await schedules.counts(transaction, new)
            if of_target >= self._of_target:
                what = "pool" if ice is None else "ICE"
                return problem(
                    "too-many-schedules", f"this {what} has {of_target} schedules: delete one first"
                )
            if total >= self._in_all:
                return problem(
                    "too-many-schedules", f"there are {total:,} schedules: delete one first"
                )
            await schedules.add(transaction, new)
            detail = {
                name: getattr(new, name)
                for name in ("cron", "timezone", "timeout", "grace", "enabled")
            }
            event = _event(actor, AuditAction.CREATE_SCHEDULE, new, ice, new.createdon, **detail)
            events.append(transaction, [event])
            return new

        return await self._engine.write(unit)

    async def change(self, actor: Actor, schedule_id: str, changes: Changes) -> Schedule | Problem:
        """Change a schedule. Its operations are requested by `actor` from then on, unless it is only disabled."""
        now = self._clock()

        async def unit(transaction: Transaction) -> Schedule | Problem:
            locked = await self._lock(transaction, schedule_id)
            if locked is None:
                return NO_SCHEDULE
            before, ice = locked
            try:
                new = before.changed(now, **changes)
            except NotValid as fault:
                return invalid(fault.field, str(fault))
            if changes != {"enabled": False}:
                new = replace(new, requested_by=actor.name, via=actor.via, former_user=None)
            detail = _differences(before, new)
            if detail:
                await schedules.update(transaction, new)
                event = _event(actor, AuditAction.CHANGE_SCHEDULE, new, ice, now, **detail)
                events.append(transaction, [event])
            return new

        return await self._engine.write(unit)

    async def delete(self, actor: Actor, schedule_id: str) -> Schedule | Problem:
        """Delete a schedule and its history; its operations stay."""

        async def unit(transaction: Transaction) -> Schedule | Problem:
            locked = await self._lock(transaction, schedule_id)
            if locked is None:
                return NO_SCHEDULE
            schedule, ice = locked
            await schedules.delete(transaction, schedule.id)
            event = _event(actor, AuditAction.DELETE_SCHEDULE, schedule, ice, self._clock())
            events.append(transaction, [event])
            return schedule

        return await self._engine.write(unit)

    async def run(
        self, actor: Actor, schedule_id: str, token: str | None = None
    ) -> Operation | Problem:
        """Request an operation of a schedule now, even if it is disabled; `token` is the caller's API token."""
        now = self._clock()

        async def unit(transaction: Transaction) -> Operation | Problem:
            locked = await self._lock(transaction, schedule_id)
            if locked is None:
                return NO_SCHEDULE
            schedule, ice = locked
            new = schedule.operation_now(secrets.token_hex(12), actor.name, token, now)
            refused = None if ice is None else refusal(ice, new.kind)
            refused = refused or await self._requests.queue_full(transaction, new)
            if refused is not None:
                return refused
            action = AuditAction.RUN_SCHEDULE
            event = _event(actor, action, schedule, ice, now, operation=new.id)
            events.append(transaction, [event])
            await self._requests.insert(transaction, actor, new, ice)
            return new

        return await self._engine.write(unit)

    # --- occurrences ---------------------------------------------------------------------------------

    async def earliest(self) -> datetime | None:
        """The earliest occurrence to decide on; None while there is none to come."""
        return await self._rows.earliest()

    async def decide_due(self) -> None:
        """Decide on all occurrences that are due. A schedule that cannot be decided on is stopped."""
        now = self._clock()
        after: tuple[str, str] | None = None
        while found := await self._rows.due(now, _BATCH, after):
            after = found[-1]
            for _, schedule_id in found:
                try:
                    for occurrence in await self._engine.write(
                        functools.partial(self._decide, schedule_id=schedule_id)
                    ):
                        self._decided(occurrence)
                except Damaged as fault:
                    await self._stop(schedule_id, str(fault))
                except StoreUnavailable:
                    raise
                except Exception as fault:  # noqa: BLE001 - one schedule must not stop the others
                    await self._stop(schedule_id, repr(fault))

    async def _stop(self, schedule_id: str, fault: str) -> None:
        _log.error("schedule stopped", schedule=schedule_id, reason=fault)
        await self._engine.write(lambda transaction: schedules.stop(transaction, schedule_id))

    async def _decide(self, transaction: Transaction, schedule_id: str) -> list[Occurrence]:
        """Decide on what is due of a schedule; returns the new rows of its history."""
        now = self._clock()
        locked = await self._lock(transaction, schedule_id)
        if locked is None or not locked[0].is_due(now):
            return []  # another node was first
        schedule, ice = locked
        try:
            decision = schedule.decide(now, await self._target(transaction, schedule, ice, now))
        except NotValid as fault:
            _log.error("schedule stopped", schedule=schedule_id, reason=f"{fault.field} {fault}")
            await schedules.stop(transaction, schedule_id)
            return []
        if decision is None or not await schedules.move_on(
            transaction, schedule, decision.schedule
        ):
            return []
        operation = None
        due = decision.runs
        if due is not None and not await schedules.was_requested(transaction.fetch, schedule, due):
            operation = schedule.operation(secrets.token_hex(12), due, now)
            actor = Actor(schedule.requested_by, Via.SCHEDULE, schedule.id)
            await self._requests.insert(transaction, actor, operation, ice)
        made = None if operation is None else operation.id
        occurrences = decision.occurrences(now, made)
        await schedules.record(transaction, schedule.id, occurrences)
        return occurrences

    async def _target(
        self, transaction: Transaction, schedule: Schedule, ice: Ice | None, now: datetime
    ) -> Target:
        """What decides on an occurrence, as it stands in this transaction."""
        fetch = transaction.fetch
        full = await self._requests.queue_full(transaction, schedule.operation("", now, now))
        return Target(
            allowed=await _is_allowed(transaction, schedule, ice),
            registered=ice is None or refusal(ice, OperationKind.SCHEDULE) is None,
            paused=ice is not None and await schedules.is_paused(fetch, ice.ice_name, now),
            unfinished=await schedules.has_unfinished(fetch, schedule.id),
            full=full is not None,
        )

    async def realign(self) -> None:
        """Correct the next occurrences after the clock was set, or the time zone database replaced."""
        now = self._clock()
        after = ""
        while found := await self._rows.enabled(_BATCH, after):
            after = found[-1].id
            for each in found:
                await asyncio.sleep(0)  # one takes up to 2 ms
                if _realigned(each, now) is not None:
                    await self._engine.write(functools.partial(self._realign, schedule_id=each.id))

    async def _realign(self, transaction: Transaction, schedule_id: str) -> None:
        schedule = await schedules.find(transaction, schedule_id)
        new = None if schedule is None else _realigned(schedule, self._clock())
        if new is not None:
            await schedules.update(transaction, new)

    async def _lock(
        self, transaction: Transaction, schedule_id: str
    ) -> tuple[Schedule, Ice | None] | None:
        """A schedule and its ICE, None for one of a pool; locked in the order that `store.schedules` wants."""
        found = await Schedules(transaction.fetch).find(schedule_id)
        if found is None:
            return None
        ice = None
        if found.pool is None:
            ice = await ices.find(transaction, found.ice_name or "")
        else:
            await pools.find(transaction, found.pool)
        locked = await schedules.find(transaction, schedule_id)
        return None if locked is None else (locked, ice)


async def _is_allowed(transaction: Transaction, schedule: Schedule, ice: Ice | None) -> bool:
    """Whether the requester may operate the target; a command may as long as its schedule stands."""
    if schedule.via is Via.COMMAND:
        return True
    user = await accounts.read_user(transaction.fetch, schedule.requested_by)
    if user is None or user.disabledon is not None:
        return False
    return may_schedule(Caller(user.name, user.role), ice)


def _realigned(schedule: Schedule, now: datetime) -> Schedule | None:
    try:
        return schedule.realigned(now)
    except NotValid:  # its time zone is gone
        return None


def _differences(before: Schedule, new: Schedule) -> dict[str, Any]:
    """What differs, for the audit log, but not the parameters, which may hold secrets."""
    names = ("name", "cron", "timezone", "timeout", "grace", "enabled", "requested_by")
    detail = differences(before, new, names)
    if before.params != new.params:
        detail["params_changed"] = True
    return detail


def _event(
    actor: Actor,
    action: AuditAction,
    schedule: Schedule,
    ice: Ice | None,
    at: datetime,
    **more: Any,
) -> Event:
    detail = {"schedule": schedule.id, "name": schedule.name, **more}
    if ice is None:
        return Event.of(at, actor, action, pool=schedule.pool, **detail)
    detail["generation_before"] = ice.generation
    return Event(at, actor, action, ice.ice_name, ice.generation, detail)
