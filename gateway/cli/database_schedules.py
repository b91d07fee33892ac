"""What an admin on the database does with schedules; `database_admin` has the rest.

Tested in tests/gateway/cli/test_schedules.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from gateway.cli.admin_port import Body, Query
from gateway.cli.api_bodies import converted, parsing
from gateway.cli.common import CommandContext, unwrap
from gateway.services import operation_schemas, schedule_schemas
from gateway.services.schedules import NO_SCHEDULE
from gateway.store.schedules import Schedules

_PAGE: Final = 200


class DatabaseSchedules:
    """Fulfils the part of `admin_port.Admin` about schedules."""

    def __init__(self, context: CommandContext) -> None:
        self._actor = context.actor
        self._services = context.services
        self._schedules = Schedules(context.engine.fetch)

    async def schedules(
        self, query: Query
    ) -> AsyncIterator[list[schedule_schemas.ScheduleDocument]]:
        """See `Admin`."""
        from gateway.admin.api.schedules import ScheduleQuery

        with parsing():
            where = ScheduleQuery.parse(query).filter()
        place, more = None, True
        while more:
            page, more = await self._schedules.page(where, _PAGE, place)
            place = page[-1].place if page else None
            yield await schedule_schemas.schedule_documents(self._schedules, page)

    async def schedule(self, schedule_id: str) -> schedule_schemas.ScheduleDocument:
        """See `Admin`."""
        found = unwrap(await self._schedules.find(schedule_id) or NO_SCHEDULE)
        return (await schedule_schemas.schedule_documents(self._schedules, [found]))[0]

    async def create_schedule(self, new: Body) -> schedule_schemas.ScheduleDocument:
        """See `Admin`."""
        from gateway.admin.api.schedules import NewSchedule

        with parsing():
            asked = converted(new, NewSchedule).asked()
        service = self._services.schedules
        made = unwrap(
            await service.create(self._actor, unwrap(service.prepare(self._actor, asked)))
        )
        return schedule_schemas.schedule_document(made, None)

    async def change_schedule(
        self, schedule_id: str, changes: Body
    ) -> schedule_schemas.ScheduleDocument:
        """See `Admin`."""
        from gateway.admin.api.schedules import ScheduleChanges

        with parsing():
            asked = converted(changes, ScheduleChanges).asked()
        unwrap(await self._services.schedules.change(self._actor, schedule_id, asked))
        return await self.schedule(schedule_id)

    async def delete_schedule(self, schedule_id: str) -> None:
        """See `Admin`."""
        unwrap(await self._services.schedules.delete(self._actor, schedule_id))

    async def run_schedule(self, schedule_id: str) -> operation_schemas.OperationDocument:
        """See `Admin`."""
        requested = unwrap(await self._services.schedules.run(self._actor, schedule_id))
        return operation_schemas.operation_document(requested)

    async def occurrences(
        self, schedule_id: str, *, limit: int
    ) -> AsyncIterator[list[schedule_schemas.OccurrenceDocument]]:
        """See `Admin`."""
        unwrap(await self._schedules.find(schedule_id) or NO_SCHEDULE)
        found = await self._schedules.occurrences(schedule_id, limit)
        yield [schedule_schemas.occurrence_document(one.occurrence) for one in found]
