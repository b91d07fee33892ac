"""An admin that works on the database; a running gateway follows the event log within a second.

The API's own code reads filters and bodies, so that both refuse alike. It is imported where it is needed: it takes
longer than most commands.

Tested in tests/gateway/cli/test_cli.py and tests/gateway/cli/test_operations.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from gateway.cli.admin_port import Body, Decision, Disabled, Query
from gateway.cli.api_bodies import converted, parsing
from gateway.cli.common import CommandContext, unwrap
from gateway.cli.database_schedules import DatabaseSchedules
from gateway.cli.database_webhooks import DatabaseWebhooks
from gateway.core.accounts import Origin, fold_user
from gateway.core.enrolment import EnrolmentState
from gateway.core.hash_chain import Head
from gateway.core.ice import IceType, fold
from gateway.core.operation import Operation
from gateway.core.pool import Pool
from gateway.core.problems import problem
from gateway.core.roles import Role
from gateway.core.secret import Secret
from gateway.core.times import utc_now
from gateway.node.expiry import OperationExpiry
from gateway.services import (
    account_schemas,
    enrolment_schemas,
    operation_schemas,
    pool_schemas,
    schemas,
)
from gateway.services.audit_export import export
from gateway.services.enrolment_keys import NO_ENROLMENT, NO_KEY
from gateway.services.leavers import LeaverIces
from gateway.services.operation_requests import NO_OPERATION, OperationRequest
from gateway.services.pools import no_pool
from gateway.services.provisioning import Done, Issued
from gateway.services.user_changes import Change
from gateway.store.enrolments import Enrolments
from gateway.store.events import EventFilter, Events
from gateway.store.ice_listing import IceListing, Listed
from gateway.store.ice_order import Mark
from gateway.store.operation_logs import OperationLogs
from gateway.store.operations import Operations
from gateway.store.pools import Pools
from gateway.store.waits import waits

_PAGE: Final = 1000
_OPERATIONS_PAGE: Final = 200
_POOLS_PAGE: Final = 200
_POLL_INTERVAL: Final = 0.2
"""Seconds between two reads of an operation that is followed."""


def _secret(body: Body) -> Secret | None:
    password = body.get("password")
    return None if password is None else Secret(password)


class DatabaseAdmin(DatabaseSchedules, DatabaseWebhooks):
    """Fulfils `admin_port.Admin`."""

    def __init__(self, context: CommandContext) -> None:
        DatabaseSchedules.__init__(self, context)
        DatabaseWebhooks.__init__(self, context)
        self._engine = context.engine
        self._services = context.services
        self._actor = context.actor
        self._table = IceListing(context.engine, context.settings.expectations)
        self._operations = Operations(context.engine.fetch)
        self._logs = OperationLogs(context.engine.fetch, context.settings.operations_log_kept)
        self._enrolments = Enrolments(context.engine)
        self._pools = Pools(context.engine.fetch)

    async def is_served(self) -> bool:
        """Whether a gateway runs on this database."""
        return await self._engine.is_served()

    async def ices(self, query: Query) -> AsyncIterator[list[schemas.IceDocument]]:
        """See `Admin`."""
        from gateway.admin.api.ices import IceQuery

        with parsing():
            wanted = IceQuery.parse(query)
            where = await wanted.filter(utc_now(), self._pools)
        served = await self.is_served()
        if not served:
            # A gateway that crashed leaves its connections in the table.
            if where.connected:
                return
            where = replace(where, connected=None)
        after: Mark | None = None
        while page := await self._table.page(where, _PAGE, order=wanted.order, after=after):
            after = page[-1].mark(wanted.order)
            yield [self._document(listed, served=served) for listed in page]

    async def ice(self, name: str) -> schemas.IceDocument:
        """See `Admin`."""
        return self._document(await self._listed(name), served=await self.is_served())

    async def _listed(self, name: str) -> Listed:
        return unwrap(await self._table.find(name) or problem("not-registered"))

    @staticmethod
    def _document(listed: Listed, *, served: bool) -> schemas.IceDocument:
        return schemas.ice_document(
            listed if served else replace(listed, connection=None), utc_now()
        )

    async def provision(self, new: Body) -> schemas.Provisioned:
        """See `Admin`."""
        issued = unwrap(
            await self._services.provisioning.provision(
                self._actor, new["ice_name"], IceType(new["ice_type"]), new.get("provisionedto")
            )
        )
        document = schemas.ice_document(Listed(issued.ice), utc_now())
        return schemas.Provisioned(document, issued.token.reveal())

    async def renew(self, action: str, name: str, body: Body) -> schemas.Renewed:
        """See `Admin`."""
        listed, done = await self._act(action, name, None, body.get("provisionedto"))
        assert isinstance(done, Issued)  # noqa: S101 - these actions issue a token
        document = schemas.ice_document(done.after(listed), utc_now())
        return schemas.Renewed(document, done.token.reveal(), done.dropped, done.unconfirmed)

    async def end(self, action: str, name: str) -> schemas.Ended:
        """See `Admin`."""
        listed, done = await self._act(action, name)
        document = schemas.ice_document(done.after(listed), utc_now())
        return schemas.Ended(document, done.dropped, done.unconfirmed)

    async def _act(self, action: str, name: str, *given: Any) -> tuple[Listed, Done]:
        listed = await self._listed(name)
        act = self._services.provisioning.actions[action]
        return listed, unwrap(await act(self._actor, listed.ice, *given))

    async def set_pause(self, action: str, name: str, body: Body) -> schemas.IceDocument:
        """See `Admin`."""
        from gateway.admin.api.ices import NewPause

        with parsing():
            order = converted(body, NewPause).order(by_admin=True, resume=action == "resume")
        ice = (await self._listed(name)).ice
        unwrap(await self._services.bulk.pause_one(self._actor, ice, order))
        return await self.ice(name)

    async def describe(self, name: str, changes: Body) -> schemas.IceDocument:
        """See `Admin`."""
        labels, note = changes.get("labels", {}), changes.get("note")
        unwrap(await self._services.bulk.label_one(self._actor, name, labels, note))
        return await self.ice(name)

    async def bulk(self, wanted: Body) -> schemas.BulkAnswer:
        """See `Admin`."""
        from gateway.admin.api.bulk import Bulk, checked, perform

        with parsing():
            body: Bulk = converted(wanted, Bulk)  # type: ignore[arg-type]
            where = await checked(body, utc_now(), self._pools)
            return await perform(self._services.bulk, self._table, self._actor, body, where)

    async def request_operation(
        self, name: str | None, new: Body, *, pool: str | None = None
    ) -> operation_schemas.OperationDocument:
        """See `Admin`."""
        from gateway.admin.api.operations import NewOperation

        with parsing():
            body = converted(new, NewOperation)
        wanted = OperationRequest(
            body.kind, bytes(body.params), body.run_at, body.deadline, body.idempotency_key
        )
        service = self._services.operations
        if pool is None:
            ice = (await self._listed(name or "")).ice
            requested = await service.request(self._actor, ice, wanted)
        else:
            requested = await service.request_of_pool(self._actor, pool, wanted)
        [document] = await self._documents([unwrap(requested)])
        return document

    async def operations(
        self, query: Query, *, limit: int, brief: bool
    ) -> AsyncIterator[list[operation_schemas.OperationDocument]]:
        """See `Admin`."""
        from gateway.admin.api.operations import OperationQuery

        with parsing():
            where = await OperationQuery.parse(query).filter(self._services.accounts)
        before, more = None, True
        while more and limit > 0:
            size = min(limit, _OPERATIONS_PAGE)
            page, more = await self._operations.page(where, size, before, brief=brief)
            limit -= len(page)
            before = page[-1].number if page else None
            yield await self._documents([item.operation for item in page])

    async def operation(self, operation_id: str) -> operation_schemas.OperationDocument:
        """See `Admin`."""
        [document] = await self._documents([await self._operation(operation_id)])
        return document

    async def _documents(
        self, found: Sequence[Operation]
    ) -> list[operation_schemas.OperationDocument]:
        why = await waits(self._engine.fetch, found, utc_now())
        return [operation_schemas.operation_document(each, why.get(each.id)) for each in found]

    async def _operation(self, operation_id: str) -> Operation:
        found = await self._operations.find(operation_id)
        return unwrap(found or NO_OPERATION)

    async def cancel(self, operation_id: str) -> None:
        """See `Admin`."""
        unwrap(await self._services.operations.cancel(self._actor, operation_id))

    async def operation_log(self, operation_id: str) -> AsyncIterator[str]:
        """See `Admin`."""
        await self._operation(operation_id)
        place, end = await self._logs.extent(operation_id)
        while place < end:
            text, place = await self._logs.read(operation_id, place)
            yield text

    async def follow(
        self, operation: operation_schemas.OperationDocument
    ) -> AsyncIterator[operation_schemas.OperationDocument | str]:
        """See `Admin`."""
        expiry = OperationExpiry(self._engine, utc_now, keep=0, ended=lambda _: None)
        found = await self._operation(operation.id)
        place, _ = await self._logs.extent(operation.id)
        while True:
            text, place = await self._logs.read(operation.id, place)
            while text:
                yield text
                text, place = await self._logs.read(operation.id, place)
            [document] = await self._documents([found])
            yield document
            if found.is_finished:
                return
            await asyncio.sleep(_POLL_INTERVAL)
            if found.deadline <= utc_now() and not await self.is_served():
                await expiry.end_overdue()  # no gateway runs to expire it
            found = await self._operation(operation.id)

    async def pools(self) -> AsyncIterator[list[pool_schemas.PoolDocument]]:
        """See `Admin`."""
        after = ""
        while page := await self._pools.after("", after, _POOLS_PAGE):
            after = fold(page[-1].name)
            yield await self._pool_documents(page)

    async def _pool_documents(self, found: list[Pool]) -> list[pool_schemas.PoolDocument]:
        documents = await pool_schemas.pool_documents(self._pools, found)
        if not await self.is_served():
            # A gateway that crashed leaves its connections in the table.
            for document in documents:
                document.ices = replace(document.ices, connected=0)
        return documents

    async def pool(self, name: str) -> pool_schemas.PoolDocument:
        """See `Admin`."""
        pool = unwrap(await self._pools.find(name) or no_pool(name))
        return (await self._pool_documents([pool]))[0]

    async def set_pool(self, name: str, wanted: Body) -> pool_schemas.PoolDocument:
        """See `Admin`."""
        from gateway.admin.api.pools import NewPool

        with parsing():
            new = converted(wanted, NewPool).checked(name)
        done = unwrap(await self._services.pools.set(self._actor, new))
        return (await self._pool_documents([done.pool]))[0]

    async def delete_pool(self, name: str) -> None:
        """See `Admin`."""
        unwrap(await self._services.pools.delete(self._actor, name))

    async def users(self) -> AsyncIterator[list[account_schemas.UserDocument]]:
        """See `Admin`."""
        logins = await self._services.logins.counts()
        after = ""
        while page := await self._services.accounts.after("", after, _PAGE):
            after = fold_user(page[-1].user.name)
            yield [
                account_schemas.user_document(listed, logins.get(listed.user.name, 0))
                for listed in page
            ]

    async def add_user(self, new: Body) -> None:
        """See `Admin`."""
        accounts, password = self._services.accounts, _secret(new)
        unwrap(await accounts.add_user(self._actor, new["name"], Role(new["role"]), password))

    async def change_user(self, name: str, changes: Body) -> None:
        """See `Admin`."""
        role, origin = changes.get("role"), changes.get("origin")
        wanted = Change(
            role and Role(role),
            changes.get("disabled"),
            _secret(changes),
            origin=origin and Origin(origin),
            subject=changes.get("subject"),
        )
        unwrap(await self._services.accounts.change(self._actor, name, wanted))

    async def disable_user(self, name: str, ices: object) -> Disabled:
        """See `Admin`."""
        wanted = msgspec.convert(ices, LeaverIces)
        done = unwrap(await self._services.accounts.disable(self._actor, name, wanted))
        return Disabled(done.user.name, account_schemas.left_document(done.left))

    async def api_tokens(self) -> AsyncIterator[list[account_schemas.ApiTokenDocument]]:
        """See `Admin`."""
        accounts = self._services.accounts
        yield await account_schemas.api_token_documents(accounts, await accounts.tokens())

    async def create_api_token(self, new: Body, *, lifetime: float) -> account_schemas.ApiTokenMade:
        """See `Admin`."""
        made = unwrap(
            await self._services.accounts.create_token(
                *(self._actor, new["user"], new["name"], lifetime, new.get("ice")),
                pool=new.get("pool"),
                may_change_accounts=new.get("accounts", False),
            )
        )
        token = account_schemas.api_token_document(made.token, made.state)
        return account_schemas.ApiTokenMade(token, made.secret.reveal())

    async def revoke_api_token(self, token_id: str) -> None:
        """See `Admin`."""
        unwrap(await self._services.accounts.revoke_token(self._actor, token_id))

    async def enrolment_keys(
        self,
    ) -> AsyncIterator[list[enrolment_schemas.EnrolmentKeyDocument]]:
        """See `Admin`."""
        place: str | None = None
        while page := await self._enrolments.keys_before(_PAGE, place):
            place = page[-1].place
            yield list(map(enrolment_schemas.key_document, page))

    async def enrolment_key(self, key_id: str) -> enrolment_schemas.EnrolmentKeyDocument:
        """See `Admin`."""
        found = await self._enrolments.key(key_id)
        return enrolment_schemas.key_document(unwrap(found or NO_KEY))

    async def create_enrolment_key(self, new: Body) -> enrolment_schemas.EnrolmentKeyMade:
        """See `Admin`."""
        from gateway.admin.api.enrolments import NewEnrolmentKey

        with parsing():
            wanted = converted(new, NewEnrolmentKey).checked(utc_now())
        made = unwrap(await self._services.enrolment_keys.create_key(self._actor, wanted))
        return enrolment_schemas.made_document(made)

    async def revoke_enrolment_key(self, key_id: str) -> None:
        """See `Admin`."""
        unwrap(await self._services.enrolment_keys.revoke_key(self._actor, key_id))

    async def enrolments(
        self, state: EnrolmentState | None
    ) -> AsyncIterator[list[enrolment_schemas.EnrolmentDocument]]:
        """See `Admin`."""
        place: str | None = None
        while page := await self._enrolments.after(state, utc_now(), _PAGE, place):
            place = page[-1].place
            yield list(map(enrolment_schemas.enrolment_document, page))

    async def enrolment(self, enrolment_id: str) -> enrolment_schemas.EnrolmentDocument:
        """See `Admin`."""
        found = await self._enrolments.one(enrolment_id, utc_now())
        return enrolment_schemas.enrolment_document(unwrap(found or NO_ENROLMENT))

    async def decide_enrolment(
        self, decision: Decision, enrolment_id: str
    ) -> enrolment_schemas.EnrolmentDocument:
        """See `Admin`."""
        service = self._services.enrolment_keys
        decide = service.approve if decision == "approve" else service.reject
        return enrolment_schemas.enrolment_document(unwrap(await decide(self._actor, enrolment_id)))

    async def nodes(self) -> list[schemas.NodeDocument]:
        """See `Admin`."""
        found = await self._services.nodes.all()
        if self._engine.shared and not await self.is_served():
            found = [replace(node, gone=True) for node in found]  # no node is left to mark them
        return [schemas.node_document(node) for node in found]

    async def set_draining(self, name: str, *, draining: bool, force: bool) -> None:
        """See `Admin`."""
        nodes = self._services.nodes
        unwrap(await nodes.set_draining(self._actor, name, draining=draining, force=force))

    async def audit_head(self) -> schemas.HeadDocument:
        """See `Admin`."""
        newest = await self._services.audit.head()
        found = unwrap(newest or problem("not-found", "There is no event yet."))
        return schemas.described(schemas.HeadDocument, found)

    async def audit_verdict(self, kept: str | None) -> schemas.VerdictDocument:
        """See `Admin`."""
        verdict = await self._services.audit.verify(None if kept is None else Head.parse(kept))
        return schemas.verdict_document(verdict, utc_now())

    async def audit_export(self, name: str) -> AsyncIterator[bytes]:
        """See `Admin`."""
        async for part in export(Events(self._engine.fetch), EventFilter(), name):
            yield part
