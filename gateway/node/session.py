"""An admitted connection of an ICE: its JSON-RPC messages and its end, independent of the socket."""

from __future__ import annotations

import asyncio
import contextlib
import re
from datetime import datetime
from typing import Final, Literal, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from client import protocol
from gateway import __version__
from gateway.core.consent import Accepts, accepts_of
from gateway.core.ice import OPERATIONS, Ice, Status
from gateway.core.operation import OperationError, failure, reason

_MAX_FACT: Final = 255
"""Characters kept of each fact that an ICE reports about itself."""
MAX_RUNNING: Final = 256
"""Operations that the `running` of a hello may name."""
_MAX_ID: Final = 128
"""Characters of an operation's id; real ones are shorter."""

_OPERATIONS: Final = {
    ice_type: [kind.value for kind in kinds] for ice_type, kinds in OPERATIONS.items()
}
_NO_HELLO: Final = protocol.Hello()
_NOTHING: Final[frozenset[str]] = frozenset()  # shared, because each empty set takes 216 bytes
_MISSING: Final = msgspec.Raw(b"")
_NOT_ACCEPTED: Final = reason(OperationError.REFUSED)
ACCEPTS_PAUSE: Final = 1.0
"""Seconds between two changes of what an ICE accepts; of those that it sends in between, the last one counts."""
_MAX_DETAIL: Final = 200
"""Characters of the reason for refusing a finish, which may quote the ICE."""


class _Answer(msgspec.Struct):
    """The result of `operation.run`."""

    accepted: bool


class _Finish(msgspec.Struct):
    """`protocol.Finish` with its values as sent."""

    id: str
    outcome: Literal["succeeded", "failed"]
    result: msgspec.Raw = _MISSING
    error: msgspec.Raw = _MISSING


class FinishReport(msgspec.Struct, frozen=True):
    """The outcome of an operation; `result` and `error` are JSON.

    `refusal` has the code and the sentence if the finish itself is refused; its operation fails with them.
    """

    id: str
    outcome: Literal["succeeded", "failed"]
    result: bytes | None
    error: bytes | None
    refusal: tuple[protocol.RpcRefusal, str] | None = None


class Observer(Protocol):
    """Gets the events of a session."""

    def may_act(self) -> bool:
        """Whether the node may act on messages of ICEs; if not, it ends all sessions."""

    def greeted(self, session: Session, instance: str | None) -> None:
        """The ICE sent its hello, which may name the instance of its client. Called at most once."""

    def accepts_changed(self, session: Session) -> None:
        """`Session.accepts` has changed since the hello, or without one."""

    def answered(self, session: Session, operation_id: str, refused: bytes | None) -> None:
        """The ICE accepted an operation, or refused it with the error `refused` (JSON)."""

    def progressed(self, session: Session, progress: protocol.Progress) -> None:
        """The ICE reported progress."""

    def logged(self, session: Session, log: protocol.Log) -> None:
        """The ICE logged a text."""

    def finished(self, session: Session, request: protocol.RequestId, finish: FinishReport) -> None:
        """The ICE reported the outcome of an operation, and waits for `Session.answer`."""

    def ended(self, session: Session, code: int) -> None:
        """The session ended; it acts on no more messages. Called once."""


class Transport(Protocol):
    """The socket of a session."""

    heard: float
    """When data was last received, in the loop's time."""

    @property
    def lost(self) -> asyncio.Future[None]:
        """Done when the connection is closed."""

    def send(self, text: bytes) -> None:
        """Send a text message, without waiting."""

    def ping(self) -> None:
        """Send a ping."""

    def close(self, code: int, reason: str | None = None) -> None:
        """Close with `code` and `reason`, by default that of `code`."""


class _AcceptsUpdates(msgspec.Struct):
    """When an `ice.accepts` was last applied, in the loop's time, and one that waits for `timer`."""

    applied: float
    waiting: Accepts | UnsetType = UNSET
    timer: asyncio.TimerHandle | None = None


class Session:
    """One admitted connection.

    `seq` is the newest event that the look-up of its admission saw; events with higher numbers came later.
    The endpoint sets `transport`. `opened` and `greeted` are in the loop's time; `running` holds the
    operations that the ICE named in its hello. `accepts` is what it said in this session about what others may
    send, UNSET before that.
    """

    __slots__ = (
        "_accepts_updates",
        "_observer",
        "accepts",
        "address",
        "generation",
        "greeted",
        "hello",
        "ice_name",
        "ice_type",
        "id",
        "opened",
        "ping_due",
        "provisionedto",
        "reading",
        "retry_after",
        "running",
        "seq",
        "since",
        "transport",
    )

    transport: Transport

    def __init__(
        self,
        ice: Ice,
        *,
        session_id: str,
        seq: int,
        address: str,
        since: datetime,
        observer: Observer,
        reading: float = 0.0,
    ) -> None:
        # Not `ice` itself: its hashes and times, half a KiB, would be held as long as the session.
        self.ice_name = ice.ice_name
        """The name under which the hub holds this session."""
        self.ice_type = ice.ice_type
        self.provisionedto = ice.provisionedto
        self.generation = ice.generation
        """The generation that was admitted; an event of a higher one ends the session."""
        self.id = session_id
        self.seq = seq
        self.address = address
        self.since = since
        self.reading = reading
        """The number of the look-up that read its ICE, if several nodes share the database."""
        self.hello = _NO_HELLO
        self.opened = asyncio.get_running_loop().time()
        self.greeted: float | None = None
        self.retry_after: float | None = None
        """Seconds after which the ICE was told to reconnect."""
        self.running = _NOTHING
        self.accepts: Accepts | UnsetType = UNSET
        self._accepts_updates: _AcceptsUpdates | None = None
        self.ping_due = 0.0
        self._observer = observer

    def welcome(self, heartbeat: float) -> bytes:
        """The encoded `ice.welcome`. `heartbeat` in seconds."""
        welcome = protocol.Welcome(
            ice_name=self.ice_name,
            ice_type=self.ice_type,
            provisionedto=self.provisionedto,
            status=Status.REGISTERED,  # no other is admitted
            generation=self.generation,
            session=self.id,
            operations=_OPERATIONS[self.ice_type],
            heartbeat=heartbeat,
            server=f"ice-gateway/{__version__}",
        )
        return protocol.notification("ice.welcome", welcome)

    def run(self, operation_id: str, kind: str, params: bytes, deadline: str) -> None:
        """Send an operation; the request's id is the operation's."""
        run = protocol.Run(
            id=operation_id, kind=kind, params=msgspec.Raw(params), deadline=deadline
        )
        self.transport.send(protocol.request("operation.run", run, operation_id))

    def cancel(self, operation_id: str, reason: protocol.CancelReason) -> None:
        """Tell the ICE to stop an operation."""
        cancel = protocol.Cancel(id=operation_id, reason=reason)
        self.transport.send(protocol.notification("operation.cancel", cancel))

    def answer(
        self,
        request: protocol.RequestId,
        refusal: protocol.RpcRefusal | None,
        detail: str | None = None,
    ) -> None:
        """Answer a request of the ICE, with `{}` or a refusal."""
        if refusal is None:
            self.transport.send(protocol.result(request, {}))
        else:
            self.transport.send(protocol.refuse(request, refusal, detail))

    def close(self, code: int, reason: str | None = None) -> None:
        """End the session; the default reason is that of `code`."""
        self.transport.close(code, reason)

    def restart(self, retry_after: float) -> None:
        """End the session, and let the ICE reconnect after so many seconds."""
        self.retry_after = retry_after
        reason = msgspec.json.encode(protocol.RetryAfter(retry_after)).decode()
        self.close(protocol.CloseCode.RESTART, reason)

    # --- for the transport -------------------------------------------------------------------------

    def received(self, text: str) -> None:
        """Act on one message, if this node still may."""
        if not self._observer.may_act():
            return
        try:
            message = _decode(text)
        except protocol.MessageTooComplex as excess:
            message = excess.message
            if message.method != "operation.finish" or message.id is msgspec.UNSET:
                self.close(protocol.CloseCode.POLICY_VIOLATION, "too-complex")
                return
            self._refuse_finish(message, message.id, protocol.RpcRefusal.INVALID, str(excess))
            return
        except protocol.NotJsonRpc:
            self.close(protocol.CloseCode.POLICY_VIOLATION)
            return
        if message.method is msgspec.UNSET:
            self._handle_response(message)
        elif message.id is not msgspec.UNSET:
            self._handle_request(message, message.id)
        else:
            # A notification is never answered (JSON-RPC 2.0, section 4.1).
            with contextlib.suppress(msgspec.ValidationError):
                self._handle_notification(message)

    def _handle_notification(self, message: protocol.Message) -> None:
        if message.method == "ice.hello":
            if self.greeted is None:
                self._handle_hello(protocol.params_of(message, protocol.Hello))
        elif message.method == "ice.accepts":
            said = protocol.params_of(message, protocol.Accepts)
            self._handle_accepts(accepts_of(said.accepts))
        elif message.method == "operation.progress":
            self._observer.progressed(self, protocol.params_of(message, protocol.Progress))
        elif message.method == "operation.log":
            self._observer.logged(self, protocol.params_of(message, protocol.Log))

    def _handle_response(self, message: protocol.Message) -> None:
        if not isinstance(message.id, str):
            return  # not the id of an operation
        if message.error is not msgspec.UNSET:
            refused = reason(OperationError.REFUSED, message.error.message, message.error.data)
            self._observer.answered(self, message.id, refused)
            return
        try:
            accepted = msgspec.json.decode(message.result or b"", type=_Answer).accepted
        except msgspec.DecodeError:
            accepted = False
        self._observer.answered(self, message.id, None if accepted else _NOT_ACCEPTED)

    def _handle_request(self, message: protocol.Message, request: protocol.RequestId) -> None:
        if message.method != "operation.finish":
            self.transport.send(
                protocol.error(request, protocol.METHOD_NOT_FOUND, "method not found")
            )
            return
        try:
            finish = protocol.params_of(message, _Finish)
        except msgspec.ValidationError as error:
            self._refuse_finish(message, request, protocol.RpcRefusal.INVALID, str(error))
            return
        result, failed = bytes(finish.result), bytes(finish.error)
        if max(len(result), len(failed)) > protocol.MAX_VALUE:
            too_large = protocol.RpcRefusal.TOO_LARGE
            self._refuse_finish(message, request, too_large, too_large.message)
            return
        why = failure(failed or None) if finish.outcome == "failed" else None
        report = FinishReport(finish.id, finish.outcome, result or None, why)
        self._observer.finished(self, request, report)

    def _refuse_finish(
        self,
        message: protocol.Message,
        request: protocol.RequestId,
        code: protocol.RpcRefusal,
        detail: str,
    ) -> None:
        """Refuse a finish; its operation fails, because the ICE will not send another one."""
        detail = detail[:_MAX_DETAIL]
        operation_id = _operation_id(message)
        if operation_id is None:
            self.answer(request, code, detail)
            return
        failed = FinishReport(operation_id, "failed", None, reason(code, detail), (code, detail))
        self._observer.finished(self, request, failed)

    def _handle_hello(self, hello: protocol.Hello) -> None:
        self.hello = protocol.Hello(
            version=_clean(hello.version),
            platform=_clean(hello.platform),
            hostname=_clean(hello.hostname),
        )
        self.greeted = asyncio.get_running_loop().time()
        named = hello.running[:MAX_RUNNING]
        self.running = frozenset(name for name in named if len(name) <= _MAX_ID)
        self.accepts = accepts_of(hello.accepts)
        if self._accepts_updates is not None:
            self._accepts_updates.waiting = UNSET  # it is older
        self._observer.greeted(self, _clean(hello.instance) or None)

    def _handle_accepts(self, accepts: Accepts) -> None:
        """Apply what the ICE now accepts, at once or when `ACCEPTS_PAUSE` is over."""
        loop = asyncio.get_running_loop()
        updates = self._accepts_updates
        if updates is None:
            updates = self._accepts_updates = _AcceptsUpdates(loop.time() - ACCEPTS_PAUSE)
        updates.waiting = accepts
        if updates.timer is None:
            left = updates.applied + ACCEPTS_PAUSE - loop.time()
            if left <= 0:
                self._apply_accepts()
            else:
                updates.timer = loop.call_later(left, self._apply_accepts)

    def _apply_accepts(self) -> None:
        """Apply the `ice.accepts` that waits, if one does."""
        updates = self._accepts_updates
        if updates is None:
            return
        if updates.timer is not None:
            updates.timer.cancel()
            updates.timer = None
        accepts, updates.waiting = updates.waiting, UNSET
        if accepts is UNSET or accepts == self.accepts:
            return
        updates.applied = asyncio.get_running_loop().time()
        self.accepts = accepts
        self._observer.accepts_changed(self)

    def overflowed(self) -> None:
        """Drop an ICE that reads too slowly."""
        self.close(protocol.CloseCode.SLOW_CONSUMER)

    def closed(self, code: int) -> None:
        """Report the end of the session, but first an `ice.accepts` that waits: it counts until the next hello."""
        self._apply_accepts()
        self._observer.ended(self, code)


def _decode(text: str) -> protocol.Message:
    """`protocol.decode`, and U+FFFD for each lone surrogate of an `operation.log`.

    JSON may hold an escape of half a pair (RFC 8259 section 8.2), such as of output that was cut within a character.
    """
    try:
        return protocol.decode(text)
    except protocol.MessageTooComplex:
        raise
    except protocol.NotJsonRpc:
        if "operation.log" not in text:
            raise
        if len(text) > _MAX_MENDED:  # it has to be read, but its text is too long to be kept
            mended = text.replace(r"\ud", r"\u0").replace(r"\uD", r"\u0")
        else:
            mended = _SURROGATES.sub(_mended, text)
        message = protocol.decode(mended)
        if message.method != "operation.log":
            raise
        return message


_SURROGATES: Final = re.compile(
    r"(?<!\\)((?:\\\\)*+)(?:(\\u[dD][89abAB]..\\u[dD][c-fC-F]..)|\\u[dD][89a-fA-F]..)"
)
"""Escaped backslashes, then a pair of surrogates or half of one."""
_MAX_MENDED: Final = 6 * protocol.MAX_LOG_BYTES + 1024
"""Characters of a message; an escape has at most six for a byte of the text. As many are searched within 20 ms."""


def _mended(found: re.Match[str]) -> str:
    return found[0] if found[2] else rf"{found[1]}\ufffd"


class _WithId(msgspec.Struct):
    id: str


def _operation_id(message: protocol.Message) -> str | None:
    """The operation in a message whose parameters may otherwise be invalid; None without one."""
    params = bytes(message.params or b"")
    for readable in (params, protocol.outline(params, 1) or b""):
        try:
            return msgspec.json.decode(readable, type=_WithId).id
        except msgspec.DecodeError:
            return None
        except RecursionError:
            continue
    return None


def _clean(text: str | None) -> str | None:
    """A fact from an ICE, cut and made printable, because people will read it."""
    if text is None:
        return None
    return "".join(char if char.isprintable() else "?" for char in text[:_MAX_FACT])
