"""What the commands work with: an admin of a gateway, on its database or over its API.

Requests are in the words of the API (docs/api.md), answers are its documents (`services.schemas`). A command does
not know which one it has: `database_admin` and `api_admin` raise `Refused` for the same reasons in the same words.

Tested in tests/gateway/cli/test_url.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from gateway.core.enrolment import EnrolmentState
from gateway.services import (
    account_schemas,
    enrolment_schemas,
    operation_schemas,
    pool_schemas,
    schedule_schemas,
    schemas,
    webhook_schemas,
)

Body = Mapping[str, Any]
"""A request's JSON object."""
Query = Sequence[tuple[str, str]]
"""The parameters of a listing."""
Decision = Literal["approve", "reject"]
"""What an admin decides on an enrolment."""


class Refused(Exception):
    """A request was refused, or has failed: a code of the catalogue, and one line for a person."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class AnswerLost(Refused):
    """The connection ended before the answer came: the request may have been carried out."""

    def __init__(self, detail: str) -> None:
        super().__init__("answer-lost", detail)


class Disabled(NamedTuple):
    """The exact name of a user who was disabled, and what became of their ICEs."""

    user: str
    left: account_schemas.LeftDocument


class Admin(Protocol):
    """Every method raises `Refused`."""

    async def is_served(self) -> bool:
        """Whether a gateway runs, so that what is requested is acted on now."""

    def ices(self, query: Query) -> AsyncIterator[list[schemas.IceDocument]]:
        """The ICEs that match, page by page (GET /ices)."""

    async def ice(self, name: str) -> schemas.IceDocument:
        """One ICE."""

    async def provision(self, new: Body) -> schemas.Provisioned:
        """Provision an ICE (POST /ices)."""

    async def renew(self, action: str, name: str, body: Body) -> schemas.Renewed:
        """Reprovision or reregister an ICE."""

    async def end(self, action: str, name: str) -> schemas.Ended:
        """Deregister or disconnect an ICE."""

    async def set_pause(self, action: str, name: str, body: Body) -> schemas.IceDocument:
        """Pause or resume an ICE (POST /ices/{ice_name}/pause and /resume)."""

    async def describe(self, name: str, changes: Body) -> schemas.IceDocument:
        """Change labels and note of an ICE (PATCH /ices/{ice_name})."""

    async def bulk(self, wanted: Body) -> schemas.BulkAnswer:
        """Act on many ICEs (POST /ices/bulk)."""

    async def request_operation(
        self, name: str | None, new: Body, *, pool: str | None = None
    ) -> operation_schemas.OperationDocument:
        """Request an operation of an ICE or of a pool."""

    def operations(
        self, query: Query, *, limit: int, brief: bool
    ) -> AsyncIterator[list[operation_schemas.OperationDocument]]:
        """The newest operations that match, page by page; `brief` ones may lack what is large."""

    async def operation(self, operation_id: str) -> operation_schemas.OperationDocument:
        """One operation."""

    async def cancel(self, operation_id: str) -> None:
        """Cancel an operation."""

    def operation_log(self, operation_id: str) -> AsyncIterator[str]:
        """What is kept of an operation's log, part by part."""

    def follow(
        self, operation: operation_schemas.OperationDocument
    ) -> AsyncIterator[operation_schemas.OperationDocument | str]:
        """The operation now and after each change, at last when it has finished; its log as texts, before that."""

    def pools(self) -> AsyncIterator[list[pool_schemas.PoolDocument]]:
        """All pools by name, page by page."""

    async def pool(self, name: str) -> pool_schemas.PoolDocument:
        """One pool."""

    async def set_pool(self, name: str, wanted: Body) -> pool_schemas.PoolDocument:
        """Make a pool, or replace it (PUT /pools/{name})."""

    async def delete_pool(self, name: str) -> None:
        """Delete a pool."""

    def schedules(self, query: Query) -> AsyncIterator[list[schedule_schemas.ScheduleDocument]]:
        """The schedules of a query (GET /schedules), newest first, page by page."""

    async def schedule(self, schedule_id: str) -> schedule_schemas.ScheduleDocument:
        """One schedule."""

    async def create_schedule(self, new: Body) -> schedule_schemas.ScheduleDocument:
        """Make a schedule (POST /schedules)."""

    async def change_schedule(
        self, schedule_id: str, changes: Body
    ) -> schedule_schemas.ScheduleDocument:
        """Change a schedule (PATCH /schedules/{id})."""

    async def delete_schedule(self, schedule_id: str) -> None:
        """Delete a schedule."""

    async def run_schedule(self, schedule_id: str) -> operation_schemas.OperationDocument:
        """Request an operation of a schedule now."""

    def occurrences(
        self, schedule_id: str, *, limit: int
    ) -> AsyncIterator[list[schedule_schemas.OccurrenceDocument]]:
        """At most `limit` occurrences of a schedule, newest first, page by page."""

    async def webhooks(self, query: Query) -> list[webhook_schemas.WebhookDocument]:
        """The webhooks of a query (GET /webhooks), oldest first."""

    async def webhook(self, webhook_id: str) -> webhook_schemas.WebhookDocument:
        """One webhook."""

    async def create_webhook(self, new: Body) -> webhook_schemas.WebhookMade:
        """Make a webhook (POST /webhooks)."""

    async def change_webhook(
        self, webhook_id: str, changes: Body
    ) -> webhook_schemas.WebhookDocument:
        """Change a webhook (PATCH /webhooks/{id})."""

    async def delete_webhook(self, webhook_id: str) -> None:
        """Delete a webhook."""

    async def test_webhook(self, webhook_id: str) -> webhook_schemas.DeliveryDocument:
        """Send a test; what became of it."""

    async def deliveries(self, webhook_id: str) -> list[webhook_schemas.DeliveryDocument]:
        """What is kept of the attempts to send to a webhook, newest first."""

    async def set_aside(self, webhook_id: str) -> list[webhook_schemas.SetAsideDocument]:
        """The messages that were set aside for a webhook, newest first."""

    async def send_again(self, webhook_id: str, message: str) -> webhook_schemas.DeliveryDocument:
        """Send a message that was set aside once more; what became of it."""

    def users(self) -> AsyncIterator[list[account_schemas.UserDocument]]:
        """All users by name, page by page."""

    async def add_user(self, new: Body) -> None:
        """Add a user (POST /users)."""

    async def change_user(self, name: str, changes: Body) -> None:
        """Change role, password or origin of a user, or enable them (PATCH /users/{name})."""

    async def disable_user(self, name: str, ices: object) -> Disabled:
        """Disable a user, with the `ices` of PATCH /users/{name}."""

    def api_tokens(self) -> AsyncIterator[list[account_schemas.ApiTokenDocument]]:
        """All API tokens, page by page."""

    async def create_api_token(self, new: Body, *, lifetime: float) -> account_schemas.ApiTokenMade:
        """Create an API token (POST /api-tokens); it lasts `lifetime` seconds, for 0 without an end."""

    async def revoke_api_token(self, token_id: str) -> None:
        """Revoke an API token."""

    def enrolment_keys(self) -> AsyncIterator[list[enrolment_schemas.EnrolmentKeyDocument]]:
        """All enrolment keys, newest first, page by page."""

    async def enrolment_key(self, key_id: str) -> enrolment_schemas.EnrolmentKeyDocument:
        """One enrolment key."""

    async def create_enrolment_key(self, new: Body) -> enrolment_schemas.EnrolmentKeyMade:
        """Make an enrolment key (POST /enrolment-keys)."""

    async def revoke_enrolment_key(self, key_id: str) -> None:
        """Revoke an enrolment key."""

    def enrolments(
        self, state: EnrolmentState | None
    ) -> AsyncIterator[list[enrolment_schemas.EnrolmentDocument]]:
        """The enrolments in this state, or all, oldest first, page by page."""

    async def enrolment(self, enrolment_id: str) -> enrolment_schemas.EnrolmentDocument:
        """One enrolment."""

    async def decide_enrolment(
        self, decision: Decision, enrolment_id: str
    ) -> enrolment_schemas.EnrolmentDocument:
        """Approve or reject an enrolment."""

    async def nodes(self) -> list[schemas.NodeDocument]:
        """The nodes by name."""

    async def set_draining(self, name: str, *, draining: bool, force: bool) -> None:
        """Drain a node, or resume it."""

    async def audit_head(self) -> schemas.HeadDocument:
        """Number and digest of the newest event."""

    async def audit_verdict(self, kept: str | None) -> schemas.VerdictDocument:
        """Whether the audit log is as it was written, up to a head that was kept elsewhere."""

    def audit_export(self, name: str) -> AsyncIterator[bytes]:
        """All events in the format of this name."""
