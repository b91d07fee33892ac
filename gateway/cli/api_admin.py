"""An admin that works over the API of a gateway elsewhere.

Tested in tests/gateway/cli/test_url.py.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator
from typing import Final, Protocol, TypeVar

import msgspec

from gateway.cli.admin_port import AnswerLost, Body, Decision, Disabled, Query, Refused
from gateway.cli.api_client import ApiClient, path_of
from gateway.cli.api_webhooks import ApiWebhooks
from gateway.cli.output import print_notice
from gateway.core.enrolment import EnrolmentState
from gateway.core.operation import UNFINISHED
from gateway.core.times import later, to_text_or_none, utc_now
from gateway.services import (
    account_schemas,
    enrolment_schemas,
    operation_schemas,
    pool_schemas,
    schedule_schemas,
    schemas,
)

_PAGE: Final = 200
_RETRY: Final = 1.0
"""Seconds before a stream that broke is read again, and at most `_RETRIES` times in succession."""
_RETRIES: Final = 60
_VERIFICATION_TIMEOUT: Final = 3600.0
"""Seconds in which a gateway verifies the longest audit log."""
_NULL: Final = b"null"
T = TypeVar("T")


class _Page(Protocol[T]):
    @property
    def items(self) -> list[T]: ...

    @property
    def next(self) -> str | None: ...


class _Log(msgspec.Struct):
    text: str


class _Progress(operation_schemas.ProgressDocument):
    data: msgspec.Raw


class _Operation(operation_schemas.OperationDocument, kw_only=True):
    """An operation whose JSON values are kept byte by byte."""

    params: msgspec.Raw
    progress: _Progress | None
    result: msgspec.Raw
    error: msgspec.Raw

    def document(self) -> operation_schemas.OperationDocument:
        """Likewise, with null as None."""
        for name in ("params", "result", "error"):
            if bytes(getattr(self, name)) == _NULL:
                setattr(self, name, None)
        return self


class _DisabledUser(msgspec.Struct):
    """The members of a user that a command shows after disabling them."""

    name: str
    left: account_schemas.LeftDocument


class _OperationPage(msgspec.Struct):
    items: list[_Operation]
    next: str | None


class ApiAdmin(ApiWebhooks):
    """Fulfils `admin_port.Admin`."""

    def __init__(self, client: ApiClient) -> None:
        super().__init__(client)
        self._client = client

    async def is_served(self) -> bool:
        """A gateway answers, so it runs."""
        return True

    async def ices(self, query: Query) -> AsyncIterator[list[schemas.IceDocument]]:
        """See `Admin`."""
        async for page in self._pages("ices", schemas.IcePage, query):
            yield page

    async def _pages(
        self, noun: str | tuple[str, ...], shape: type[_Page[T]], query: Query, size: int = _PAGE
    ) -> AsyncIterator[list[T]]:
        """The items of a listing, page by page."""
        cursor: str | None = None
        path = path_of(*((noun,) if isinstance(noun, str) else noun))
        while True:
            place = () if cursor is None else (("cursor", cursor),)
            asked = (*query, ("limit", str(size)), *place)
            page = await self._client.call("GET", path, shape, query=asked)
            yield page.items
            cursor = page.next
            if cursor is None:
                return

    async def ice(self, name: str) -> schemas.IceDocument:
        """See `Admin`."""
        return await self._client.call("GET", path_of("ices", name), schemas.IceDocument)

    async def provision(self, new: Body) -> schemas.Provisioned:
        """See `Admin`."""
        return await self._client.call("POST", path_of("ices"), schemas.Provisioned, new)

    async def renew(self, action: str, name: str, body: Body) -> schemas.Renewed:
        """See `Admin`."""
        return await self._client.call("POST", path_of("ices", name, action), schemas.Renewed, body)

    async def end(self, action: str, name: str) -> schemas.Ended:
        """See `Admin`."""
        return await self._client.call("POST", path_of("ices", name, action), schemas.Ended)

    async def set_pause(self, action: str, name: str, body: Body) -> schemas.IceDocument:
        """See `Admin`."""
        path = path_of("ices", name, action)
        return await self._client.call("POST", path, schemas.IceDocument, body)

    async def describe(self, name: str, changes: Body) -> schemas.IceDocument:
        """See `Admin`."""
        return await self._client.call("PATCH", path_of("ices", name), schemas.IceDocument, changes)

    async def bulk(self, wanted: Body) -> schemas.BulkAnswer:
        """See `Admin`."""
        return await self._client.call("POST", path_of("ices", "bulk"), schemas.BulkAnswer, wanted)

    async def request_operation(
        self, name: str | None, new: Body, *, pool: str | None = None
    ) -> operation_schemas.OperationDocument:
        """See `Admin`."""
        target = ("ices", name or "") if pool is None else ("pools", pool)
        path = path_of(*target, "operations")
        return (await self._client.call("POST", path, _Operation, new)).document()

    async def operations(
        self,
        query: Query,
        *,
        limit: int,
        brief: bool,  # noqa: ARG002 - the API has no brief ones
    ) -> AsyncIterator[list[operation_schemas.OperationDocument]]:
        """See `Admin`."""
        async for page in self._pages("operations", _OperationPage, query, min(limit, _PAGE)):
            yield [each.document() for each in page[:limit]]
            limit -= len(page)
            if limit <= 0:
                return

    async def operation(self, operation_id: str) -> operation_schemas.OperationDocument:
        """See `Admin`."""
        found = await self._client.call("GET", path_of("operations", operation_id), _Operation)
        return found.document()

    async def cancel(self, operation_id: str) -> None:
        """See `Admin`."""
        await self._client.send("POST", path_of("operations", operation_id, "cancel"))

    async def pools(self) -> AsyncIterator[list[pool_schemas.PoolDocument]]:
        """See `Admin`."""
        async for page in self._pages("pools", pool_schemas.PoolPage, ()):
            yield page

    async def pool(self, name: str) -> pool_schemas.PoolDocument:
        """See `Admin`."""
        return await self._client.call("GET", path_of("pools", name), pool_schemas.PoolDocument)

    async def set_pool(self, name: str, wanted: Body) -> pool_schemas.PoolDocument:
        """See `Admin`."""
        path = path_of("pools", name)
        return await self._client.call("PUT", path, pool_schemas.PoolDocument, wanted)

    async def delete_pool(self, name: str) -> None:
        """See `Admin`."""
        await self._client.send("DELETE", path_of("pools", name))

    async def schedules(
        self, query: Query
    ) -> AsyncIterator[list[schedule_schemas.ScheduleDocument]]:
        """See `Admin`."""
        async for page in self._pages("schedules", schedule_schemas.SchedulePage, query):
            yield page

    async def schedule(self, schedule_id: str) -> schedule_schemas.ScheduleDocument:
        """See `Admin`."""
        path = path_of("schedules", schedule_id)
        return await self._client.call("GET", path, schedule_schemas.ScheduleDocument)

    async def create_schedule(self, new: Body) -> schedule_schemas.ScheduleDocument:
        """See `Admin`."""
        path = path_of("schedules")
        return await self._client.call("POST", path, schedule_schemas.ScheduleDocument, new)

    async def change_schedule(
        self, schedule_id: str, changes: Body
    ) -> schedule_schemas.ScheduleDocument:
        """See `Admin`."""
        path = path_of("schedules", schedule_id)
        return await self._client.call("PATCH", path, schedule_schemas.ScheduleDocument, changes)

    async def delete_schedule(self, schedule_id: str) -> None:
        """See `Admin`."""
        await self._client.send("DELETE", path_of("schedules", schedule_id))

    async def run_schedule(self, schedule_id: str) -> operation_schemas.OperationDocument:
        """See `Admin`."""
        path = path_of("schedules", schedule_id, "run")
        return (await self._client.call("POST", path, _Operation, {})).document()

    async def occurrences(
        self, schedule_id: str, *, limit: int
    ) -> AsyncIterator[list[schedule_schemas.OccurrenceDocument]]:
        """See `Admin`."""
        place = ("schedules", schedule_id, "occurrences")
        shape = schedule_schemas.OccurrencePage
        async for page in self._pages(place, shape, (), min(limit, _PAGE)):
            yield page[:limit]
            limit -= len(page)
            if limit <= 0:
                return

    async def users(self) -> AsyncIterator[list[account_schemas.UserDocument]]:
        """See `Admin`."""
        async for page in self._pages("users", account_schemas.UserPage, ()):
            yield page

    async def add_user(self, new: Body) -> None:
        """See `Admin`."""
        await self._client.send("POST", path_of("users"), new)

    async def change_user(self, name: str, changes: Body) -> None:
        """See `Admin`."""
        await self._client.send("PATCH", path_of("users", name), changes)

    async def disable_user(self, name: str, ices: object) -> Disabled:
        """See `Admin`."""
        changes = {"disabled": True, "ices": ices}
        done = await self._client.call("PATCH", path_of("users", name), _DisabledUser, changes)
        return Disabled(done.name, done.left)

    async def api_tokens(self) -> AsyncIterator[list[account_schemas.ApiTokenDocument]]:
        """See `Admin`."""
        async for page in self._pages("api-tokens", account_schemas.ApiTokenPage, ()):
            yield page

    async def create_api_token(self, new: Body, *, lifetime: float) -> account_schemas.ApiTokenMade:
        """See `Admin`."""
        body = {**new, "expires": to_text_or_none(later(utc_now(), lifetime))}
        return await self._client.call(
            "POST", path_of("api-tokens"), account_schemas.ApiTokenMade, body
        )

    async def revoke_api_token(self, token_id: str) -> None:
        """See `Admin`."""
        await self._client.send("DELETE", path_of("api-tokens", token_id))

    async def enrolment_keys(
        self,
    ) -> AsyncIterator[list[enrolment_schemas.EnrolmentKeyDocument]]:
        """See `Admin`."""
        async for page in self._pages("enrolment-keys", enrolment_schemas.EnrolmentKeyPage, ()):
            yield page

    async def enrolment_key(self, key_id: str) -> enrolment_schemas.EnrolmentKeyDocument:
        """See `Admin`."""
        path = path_of("enrolment-keys", key_id)
        return await self._client.call("GET", path, enrolment_schemas.EnrolmentKeyDocument)

    async def create_enrolment_key(self, new: Body) -> enrolment_schemas.EnrolmentKeyMade:
        """See `Admin`."""
        path = path_of("enrolment-keys")
        return await self._client.call("POST", path, enrolment_schemas.EnrolmentKeyMade, new)

    async def revoke_enrolment_key(self, key_id: str) -> None:
        """See `Admin`."""
        await self._client.send("DELETE", path_of("enrolment-keys", key_id))

    async def enrolments(
        self, state: EnrolmentState | None
    ) -> AsyncIterator[list[enrolment_schemas.EnrolmentDocument]]:
        """See `Admin`."""
        query = () if state is None else (("state", state.value),)
        async for page in self._pages("enrolments", enrolment_schemas.EnrolmentPage, query):
            yield page

    async def enrolment(self, enrolment_id: str) -> enrolment_schemas.EnrolmentDocument:
        """See `Admin`."""
        path = path_of("enrolments", enrolment_id)
        return await self._client.call("GET", path, enrolment_schemas.EnrolmentDocument)

    async def decide_enrolment(
        self, decision: Decision, enrolment_id: str
    ) -> enrolment_schemas.EnrolmentDocument:
        """See `Admin`."""
        path = path_of("enrolments", enrolment_id, decision)
        return await self._client.call("POST", path, enrolment_schemas.EnrolmentDocument)

    async def nodes(self) -> list[schemas.NodeDocument]:
        """See `Admin`."""
        return [node async for page in self._pages("nodes", schemas.NodePage, ()) for node in page]

    async def set_draining(self, name: str, *, draining: bool, force: bool) -> None:
        """See `Admin`."""
        action = "drain" if draining else "resume"
        body = {"force": True} if force else None
        await self._client.send("POST", path_of("nodes", name, action), body)

    async def audit_head(self) -> schemas.HeadDocument:
        """See `Admin`."""
        return await self._client.call("GET", path_of("audit", "head"), schemas.HeadDocument)

    async def audit_verdict(self, kept: str | None) -> schemas.VerdictDocument:
        """See `Admin`."""
        return await self._client.call(
            "GET",
            path_of("audit", "verification"),
            schemas.VerdictDocument,
            query=() if kept is None else (("head", kept),),
            timeout=_VERIFICATION_TIMEOUT,
        )

    async def audit_export(self, name: str) -> AsyncIterator[bytes]:
        """See `Admin`."""
        path = path_of("audit", "export")
        async for part in self._client.download(path, (("format", name),)):
            yield part

    async def operation_log(self, operation_id: str) -> AsyncIterator[str]:
        """See `Admin`."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        async for part in self._client.download(path_of("operations", operation_id, "log"), ()):
            yield decoder.decode(part)

    async def follow(
        self, operation: operation_schemas.OperationDocument
    ) -> AsyncIterator[operation_schemas.OperationDocument | str]:
        """See `Admin`."""
        failures = 0
        place = ""
        while True:
            try:
                async for news, reached in self._stream(operation, place):
                    failures, place = 0, reached
                    yield news
                    if isinstance(news, str):
                        continue
                    operation = news
                    if operation.state not in UNFINISHED:
                        return
                lost: Refused = AnswerLost("the stream of the operation has ended")
            except Refused as error:
                if not (isinstance(error, AnswerLost) or error.code in _PASSING):
                    raise
                lost = error
            failures += 1
            if failures > _RETRIES:
                raise lost
            if failures == 1:
                print_notice(f"{lost}; trying again")
            await asyncio.sleep(_RETRY)

    async def _stream(
        self, operation: operation_schemas.OperationDocument, place: str
    ) -> AsyncIterator[tuple[operation_schemas.OperationDocument | str, str]]:
        """The operation after each event of its stream, or a text of its log, and the place in that."""
        path = path_of("operations", operation.id, "stream")
        async for event in self._client.events(path, after=place):
            place = event.id or place
            if event.name == "result":
                yield msgspec.json.decode(event.data, type=_Operation).document(), place
                continue
            if event.name == "log":
                yield msgspec.json.decode(event.data, type=_Log).text, place
                continue
            if event.name == "progress":
                progress = msgspec.json.decode(event.data, type=_Progress)
                operation = msgspec.structs.replace(operation, progress=progress)
            elif event.name == "state":
                news = msgspec.json.decode(event.data, type=operation_schemas.OperationState)
                operation = msgspec.structs.replace(
                    operation,
                    state=news.state,
                    sent=news.sent,
                    finished=news.finished,
                    waits=news.waits,
                )
            if operation.state in UNFINISHED:  # otherwise the result follows
                yield operation, place


_PASSING: Final = frozenset({"unreachable", "store-unavailable", "draining", "not-understood"})
"""Codes of refusals after which a stream is worth another attempt."""
