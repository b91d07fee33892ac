"""`IceClient`: the connection of one ICE to its gateway.

    async with IceClient("https://gateway.example", token=token) as ice:

        @ice.operation("execute")
        async def execute(operation: Operation, report: Report) -> object:
            await report(0.5, "half way")
            return {"exit": 0}

        outcome = await ice.wait()

`backoff` has the rules for reconnecting, `handshake` one attempt, `operations` the work.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import msgspec
from aiohttp import WSCloseCode, WSMsgType

from client import __version__, consent, handshake, platform, protocol
from client.backoff import Backoff, Closed, ClosedByUs, Refused, Stopped
from client.consent import Consent
from client.credentials import IdentityProblem, Token, proof
from client.environment import Environment
from client.errors import closing_line, ending, one_line
from client.events import Event, log_event
from client.exceptions import IceClientError, NotEntered
from client.gateway_client import GatewayClient
from client.handshake import Connector, WebSocket
from client.identity import FolderUnusable, Identity, StateFolder
from client.journal import Journal
from client.operations import Handler, OperationRunner, check_handler
from client.protocol import CloseCode, RefusalCode
from client.text import encodable

# These mean that the token is no longer valid for this ICE; with others the fault may lie elsewhere.
_UNREGISTERED: Final[frozenset[str | int]] = frozenset(
    {
        *(RefusalCode.DEREGISTERED, RefusalCode.TOKEN_REPLACED),
        *(RefusalCode.TOKEN_EXPIRED, RefusalCode.KEY_MISMATCH),
        *(CloseCode.DEREGISTERED, CloseCode.TOKEN_REPLACED),
    }
)


Outcome = Stopped | ClosedByUs
_H = TypeVar("_H", bound=Handler)


class IceStopped(IceClientError):
    """The client stopped before it was connected; `outcome` says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(str(outcome))
        self.outcome = outcome


class IceClient(GatewayClient):
    """Connects, registers on the first run, reconnects by itself, and runs the operations that the gateway sends.

    Entering locks the state folder, or raises `credentials.IdentityProblem`; leaving closes the connection
    with 1000. Every error is an `IceClientError`.

    Args:
        gateway_url: the gateway's base URL, `https://host[:port][/prefix]`.
        state_dir: the folder for key, token and state; `platform.default_state_dir()` by default.
        token: the registration token; needed once. It never replaces a newer stored token of the same gateway.
        ca_file: PEM certificates to trust in addition to the system's.
        insecure: allow plain http beyond loopback. Certificates are always verified.
        handlers: a handler by operation kind; `operation` adds more.
        accepts: the kinds that others than the ICE's user may send, while `accept` and `ice-client accept` have
            stored nothing in the state folder; None for all.
        version: the version in `ice.hello`.
        options: further options in the command that `ice-client status` suggests.
        observe: called with every `Event`; by default they are logged.
        environment: clocks, sleep, randomness and patience.

    Raises:
        endpoint.BadAddress: `gateway_url` is not a valid URL, or plain http without `insecure`.
        endpoint.BadCertificateFile: `ca_file` cannot be used.
        exceptions.InvalidValue: `accepts` or `handlers` has an unknown kind.
        exceptions.InvalidType: one of `handlers` is no coroutine function.
    """

    def __init__(
        self,
        gateway_url: str,
        *,
        state_dir: Path | str | None = None,
        token: Token | str | None = None,
        ca_file: Path | str | None = None,
        insecure: bool = False,
        handlers: Mapping[str, Handler] | None = None,
        accepts: Iterable[str] | None = None,
        version: str | None = None,
        options: Sequence[str] = (),
        observe: Callable[[Event], None] = log_event,
        environment: Environment | None = None,
    ) -> None:
        super().__init__(
            gateway_url,
            state_dir=state_dir,
            ca_file=ca_file,
            insecure=insecure,
            options=options,
            observe=observe,
            environment=environment,
        )
        self._given_token = Token(token) if isinstance(token, str) else token
        self._version = encodable(version or __version__)
        self._instance = secrets.token_hex(16)
        self._backoff = Backoff(self._environment)
        self._handlers: dict[str, Handler] = {}
        for kind, handler in (handlers or {}).items():
            self.operation(kind)(handler)
        self._operations = OperationRunner(
            self._handlers, self._send, self._warn, self._environment.waits
        )
        self._consent = Consent(StateFolder(self._folder), consent.checked(accepts), self._warn)
        self._watcher: asyncio.Task[None] | None = None
        self._socket: WebSocket | None = None
        self._first_refusal: Stopped | None = None
        """Why the given token was refused, while the stored one is tried."""
        self._welcomed = asyncio.Event()
        self._task: asyncio.Task[Outcome] | None = None
        self.welcome: protocol.Welcome | None = None
        """The welcome of the current session; None while not connected."""

    # --- public ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._identity = Identity(self._folder, self._given_token, self._gateway)
        try:
            self._operations.open(Journal(self._folder / "operations.db", self._environment.now))
        except IdentityProblem:
            self._identity.close()
            raise
        if self._identity.token_ignored:
            self._warn("the given token is not newer than the stored one; using the stored one")
        self._consent.load()
        self._begin(self._identity, enrolment=None, accepts=self._consent.kinds)
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: self._welcomed.set())  # `connected` waits for either
        if self._stop_requested:
            self._task.cancel()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()
        try:
            await self.wait()
        finally:
            self._identity.close()

    def operation(self, kind: str) -> Callable[[_H], _H]:
        """Register a handler, a coroutine function, for one kind of operation.

        Raises `InvalidValue` for an unknown kind, `InvalidType` for any other handler.
        """
        consent.checked([kind])

        def register(handler: _H) -> _H:
            check_handler(kind, handler)
            self._handlers[kind] = handler
            return handler

        return register

    def accept(self, kinds: Iterable[str] | None) -> None:
        """Store which kinds others than the ICE's user may send, as `ice-client accept` does; None for all.

        The gateway learns it within a few seconds, or by the next hello. Raises `InvalidValue` for an unknown
        kind, or `credentials.IdentityProblem`.
        """
        decision = protocol.Accepts(accepts=consent.checked(kinds))
        StateFolder(self._folder).store_decision(decision)

    async def connected(self) -> protocol.Welcome:
        """Wait for a session and return its welcome. Raises `IceStopped` if the client stops first."""
        while self.welcome is None:
            if self._running.done():
                raise IceStopped(await self.wait())
            await self._welcomed.wait()
        return self.welcome

    async def wait(self) -> Outcome:
        """Wait until the client stops, by itself or by `stop`."""
        await asyncio.wait({self._running})
        return ClosedByUs() if self._running.cancelled() else self._running.result()

    def stop(self) -> None:
        """Fail running operations as `interrupted` and close the connection; `wait` returns `ClosedByUs`."""
        # Once only: a second cancellation would interrupt the closing.
        if self._task is not None and not self._stop_requested:
            self._leaving = asyncio.create_task(self._shut_down(self._task))
        self._stop_requested = True

    async def _shut_down(self, task: asyncio.Task[Outcome]) -> None:
        try:
            await self._operations.interrupt()
            if self._socket is not None:
                await self._operations.report_interrupted()
        finally:
            task.cancel()

    @property
    def _running(self) -> asyncio.Task[Outcome]:
        if self._task is None:
            raise NotEntered("enter the client first: `async with IceClient(...) as ice`")
        return self._task

    # --- connecting --------------------------------------------------------------------------------

    async def _run(self) -> Outcome:
        env = self._environment
        try:
            async with Connector(
                self._endpoint, self._ca_file, self._credentials, now=env.now, waits=env.waits
            ) as connector:
                while not isinstance(verdict := await self._attempt(connector), Stopped):
                    if verdict:
                        await self._environment.sleep(verdict)
            return verdict
        finally:
            await self._operations.close()

    def _credentials(self) -> tuple[str, str]:
        token = self._identity.token
        now = self._environment.now()
        dpop = proof(self._identity.key, self._endpoint.url, token, now=now, nonce=self._nonce)
        return f"DPoP {token.reveal()}", dpop

    async def _attempt(self, connector: Connector) -> float | Stopped:
        """One handshake and the session that may follow; returns seconds to wait, or the final outcome."""
        self._emit(Event("connecting", f"connecting to {self._endpoint.url}"))
        answer = await connector.connect()
        # Only the next proof carries the nonce: the gateway judges such a proof only by its nonce, and would
        # refuse it once the nonce is stale.
        self._nonce = answer.nonce if isinstance(answer, Refused) else None
        if isinstance(answer, Refused):
            verdict = self._backoff.refused(answer, was_admitted=self._identity.was_admitted)
            if isinstance(verdict, Stopped):
                if self._identity.try_next_token():
                    self._first_refusal = verdict
                    self._warn(f"{answer} (trying the stored token)")
                    return 0.0
                verdict = self._first_refusal or verdict
            self._refused(answer, verdict)
            return verdict
        began = self._environment.monotonic()
        try:
            closed = await self._serve(answer)
        finally:
            self.welcome = None
            self._welcomed.clear()
            self._save(connected=False, since=self._timestamp())
        verdict = self._backoff.closed(closed, lasted=self._environment.monotonic() - began)
        self._closed(closed, verdict)
        return verdict

    def _closed(self, closed: Closed, verdict: float | Stopped) -> None:
        self._ended(closed, verdict)
        # Of our close codes, those below 3000 (RFC 6455 section 7.4.2) mean a protocol violation.
        rule = protocol.CLOSINGS.get(closed.code)
        broken = rule is not None and closed.code < 3000 and rule.then is protocol.Then.RECONNECT  # noqa: PLR2004
        level = logging.ERROR if isinstance(verdict, Stopped) or broken else logging.WARNING
        self._emit(Event("closed", closing_line(closed), level, closed.code))
        if not isinstance(verdict, Stopped):
            self._emit(Event("reconnecting", f"reconnecting in {verdict:.1f} s"))

    def _ended(self, end: Refused | Closed, verdict: float | Stopped, **changes: Any) -> None:
        was = self._identity.state
        registered = was.registered and (was.moves or end.code not in _UNREGISTERED)
        super()._ended(end, verdict, registered=registered, **changes)

    # --- one session -------------------------------------------------------------------------------

    async def _serve(self, socket: WebSocket) -> Closed:
        """Receive from the welcome to the end of the session, then close the socket."""
        code, silence = WSCloseCode.OK, self._environment.waits.handshake
        try:
            while True:
                # The timeout includes sending answers: a peer that stops reading must not block the client.
                async with asyncio.timeout(silence):
                    frame = await socket.receive()
                    if frame.type is WSMsgType.PING:
                        with contextlib.suppress(ConnectionError):
                            await _undisturbed(socket.pong(frame.data))
                    elif frame.type is WSMsgType.TEXT and self._socket is None:
                        welcome = _welcome(frame.data)
                        self._socket = socket
                        await self._admitted(welcome)
                        silence = 2 * welcome.heartbeat if welcome.heartbeat > 0 else silence
                    elif frame.type is WSMsgType.TEXT:
                        await self._handle(frame.data)
                    elif frame.type is WSMsgType.BINARY:
                        code = WSCloseCode.UNSUPPORTED_DATA
                        return Closed(
                            code,
                            "The gateway sent a binary frame; the client closed the connection.",
                        )
                    elif frame.type is not WSMsgType.PONG:
                        return ending(frame)
        except TimeoutError:
            sentence = f"Nothing was heard from the gateway for {silence:g} s."
            return Closed(WSCloseCode.ABNORMAL_CLOSURE, sentence)
        except (protocol.NotJsonRpc, msgspec.ValidationError) as error:
            code = WSCloseCode.POLICY_VIOLATION
            sentence = "The gateway broke the protocol; the client closed the connection."
            return Closed(code, f"{sentence} ({one_line(str(error))})")
        finally:
            # A close code that the gateway sends from now on, such as 4103, no longer counts.
            self._socket = None
            if self._watcher is not None:
                self._watcher.cancel()
            await handshake.hang_up(socket, code)

    async def _admitted(self, welcome: protocol.Welcome) -> None:
        self._consent.reload()
        name, kind, session = map(one_line, (welcome.ice_name, welcome.ice_type, welcome.session))
        self._save(
            ice_name=name,
            ice_type=kind,
            admitted=self._identity.token.digest(),
            registered=True,
            connected=True,
            since=self._timestamp(),
            code=None,
            sentence=None,
            next=None,
            accepts=self._consent.kinds,
        )
        hello = protocol.Hello(
            version=self._version,
            platform=platform.describe(),
            hostname=platform.hostname(),
            instance=self._instance,
            running=self._operations.running,
            accepts=self._consent.kinds,
        )
        self._first_refusal = None
        try:
            self._identity.store_admitted_token()
        except FolderUnusable as problem:
            self._warn(str(problem))
        await self._send(protocol.notification("ice.hello", hello))
        self.welcome = welcome
        self._welcomed.set()
        self._emit(Event("admitted", f"admitted as {name} ({kind}), session {session}"))
        self._watcher = asyncio.create_task(self._watch_consent())
        await self._operations.repeat()

    async def _watch_consent(self) -> None:
        """Tell the gateway when the kinds change that others may send."""
        while True:
            await asyncio.sleep(self._environment.waits.consent)
            if self._consent.reload():
                kinds = self._consent.kinds
                self._save(accepts=kinds)
                self._emit(Event("accepts", f"others may send: {consent.described(kinds)}"))
                accepts = protocol.Accepts(accepts=kinds)
                await self._send(protocol.notification("ice.accepts", accepts))

    async def _handle(self, text: str) -> None:
        """Act on one message from the gateway. Raises `NotJsonRpc`."""
        try:
            message = protocol.decode(text)
        except protocol.MessageTooComplex as excess:
            message = excess.message
            if message.method != "operation.run" or message.id is msgspec.UNSET:
                raise
            await self._send(protocol.error(message.id, protocol.INVALID_PARAMS, str(excess)))
            return
        if message.method is msgspec.UNSET:
            await self._operations.answered(message)
        elif message.id is msgspec.UNSET:
            if message.method == "operation.cancel":
                cancel = protocol.params_of(message, protocol.Cancel)
                self._operations.cancel(cancel.id, cancel.reason)
        elif message.method == "operation.run":
            await self._operations.run(message, message.id)
        else:
            text = f"this ICE has no method {one_line(message.method)}"
            await self._send(protocol.error(message.id, protocol.METHOD_NOT_FOUND, text))

    async def _send(self, data: bytes) -> bool:
        """Send a message, or drop it while not connected; returns whether it was sent."""
        if self._socket is not None:
            with contextlib.suppress(ConnectionError):
                await _undisturbed(self._socket.send_frame(data, WSMsgType.TEXT))
                return True
        return False


def _undisturbed(sending: Coroutine[Any, Any, None]) -> Awaitable[None]:
    """A frame on its way, which a cancelled caller leaves alone.

    All callers that wait for aiohttp's buffer share one future: if one were cancelled, so would be the others.
    """
    return asyncio.shield(sending)


def _welcome(text: str) -> protocol.Welcome:
    """The welcome in the first frame. Raises `NotJsonRpc` or `ValidationError`."""
    message = protocol.decode(text)
    if message.method != "ice.welcome" or message.id is not msgspec.UNSET:
        raise protocol.NotJsonRpc("the first frame is not ice.welcome")
    return protocol.params_of(message, protocol.Welcome)
