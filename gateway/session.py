"""An admitted connection of an ICE: its messages, its one end. Speaks JSON-RPC, knows no socket."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Protocol

import msgspec

from client import protocol
from gateway import __version__
from gateway.ice import OPERATIONS, Ice
from gateway.wire import Wire

_MAX_FACT: Final = 255
"""Characters kept of what an ICE says of itself."""


class Observer(Protocol):
    """Whoever wants to know of a session's hello and end."""

    def greeted(self, session: Session) -> None:
        """The ICE has told its version, platform and host name."""

    def ended(self, session: Session, code: int) -> None:
        """The session is over: nothing that the ICE sends is acted on any more. Comes once."""


class Session:
    """One admitted connection.

    `seq` is the newest event that the look-up behind its admission saw: what is numbered above came
    after it. `wire` is set by whoever hands the socket over.
    """

    __slots__ = (
        "_observer",
        "address",
        "hello",
        "ice",
        "id",
        "ping_due",
        "seq",
        "since",
        "wire",
    )

    wire: Wire

    def __init__(
        self,
        ice: Ice,
        *,
        session_id: str,
        seq: int,
        address: str,
        since: datetime,
        observer: Observer,
    ) -> None:
        self.ice = ice
        self.id = session_id
        self.seq = seq
        self.address = address
        self.since = since
        self.hello = protocol.Hello()
        self.ping_due = 0.0
        self._observer = observer

    @property
    def ice_name(self) -> str:
        """The name under which the hub holds this session."""
        return self.ice.ice_name

    @property
    def generation(self) -> int:
        """The generation that was admitted; an event of a higher one ends the session."""
        return self.ice.generation

    def welcome(self, heartbeat: float) -> None:
        """Send the first frame."""
        ice = self.ice
        welcome = protocol.Welcome(
            ice_name=ice.ice_name,
            ice_type=ice.ice_type,
            provisionedto=ice.provisionedto,
            status=ice.status,
            generation=ice.generation,
            session=self.id,
            operations=[kind.value for kind in OPERATIONS[ice.ice_type]],
            heartbeat=heartbeat,
            server=f"ice-gateway/{__version__}",
        )
        self.wire.send(protocol.notification("ice.welcome", welcome))

    def close(self, code: int, reason: str | None = None) -> None:
        """End the session; `reason` is the catalogue's where none is given."""
        self.wire.close(code, reason)

    # --- what the wire tells -----------------------------------------------------------------------

    def received(self, text: str) -> None:
        """Act on one message."""
        try:
            message = protocol.decode(text)
        except protocol.NotJsonRpc:
            self.close(1008)
            return
        if message.method is msgspec.UNSET:
            return  # an answer that nobody waits for
        if message.id is not msgspec.UNSET:
            self.wire.send(
                protocol.error(message.id, protocol.METHOD_NOT_FOUND, "method not found")
            )
        elif message.method == "ice.hello":
            self._greet(message)

    def _greet(self, message: protocol.Message) -> None:
        try:
            hello = protocol.params_of(message, protocol.Hello)
        except msgspec.ValidationError:
            return  # a notification is never answered (JSON-RPC 2.0, section 4.1)
        self.hello = protocol.Hello(
            version=_fact(hello.version),
            platform=_fact(hello.platform),
            hostname=_fact(hello.hostname),
        )
        self._observer.greeted(self)

    def overflowed(self) -> None:
        """Drop an ICE that does not read."""
        self.close(4202)

    def closed(self, code: int) -> None:
        """Tell that it is over."""
        self._observer.ended(self, code)


def _fact(text: str | None) -> str | None:
    """What an ICE says of itself, short and without control characters: people will read it."""
    if text is None:
        return None
    return "".join(char if char.isprintable() else "?" for char in text[:_MAX_FACT])
