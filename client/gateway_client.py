"""What `IceClient` and `Enroller` share: where the gateway is, the state folder, and how they report.

Tested in tests/client/test_client_agent.py and tests/client/test_client_enrolment.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client import platform, protocol
from client.backoff import Closed, Refused, Stopped
from client.endpoint import Endpoint, tls
from client.environment import Environment
from client.events import Event
from client.identity import FolderUnusable, LockedFolder

logger = logging.getLogger(__name__)


class GatewayClient:
    """A client of one gateway with one state folder; `IceClient` says what the arguments are."""

    def __init__(
        self,
        gateway_url: str,
        *,
        state_dir: Path | str | None,
        ca_file: Path | str | None,
        insecure: bool,
        options: Sequence[str],
        observe: Callable[[Event], None],
        environment: Environment | None,
    ) -> None:
        self._endpoint = Endpoint.of(gateway_url, insecure=insecure)
        self._gateway = self._endpoint.url.removesuffix(protocol.PATH)
        self._ca_file = Path(ca_file) if ca_file else None
        if self._ca_file and not self._endpoint.plain:
            tls(self._ca_file)  # refuse a file that cannot be used
        self._folder = Path(state_dir) if state_dir else _default_folder()
        self._options = list(options)
        self._observe = observe
        self._environment = environment or Environment()
        self._nonce: str | None = None
        self._stop_requested = False

    def _begin(self, locked: LockedFolder, **changes: Any) -> None:
        """Warn of what is not safe, and report the start in the state, with these `changes`."""
        self._locked = locked
        if locked.exposed:
            self._warn(
                f"other users could read or change {' and '.join(locked.exposed)} until now: if one may"
                " have done so, ask the admin to reregister this ICE"
            )
        if self._endpoint.exposed:
            self._warn("plain http: anyone on the network path can read the token and all messages")
        was = locked.state
        self._save(
            gateway=self._gateway,
            options=self._options,
            connected=False,
            # A client that was killed could not write when its connection ended.
            since=self._timestamp() if was.connected else was.since,
            code=None,
            sentence=None,
            next=self._timestamp(),
            must_act=False,
            **changes,
        )

    def _refused(self, refused: Refused, verdict: float | Stopped) -> None:
        """Report a refusal, and the seconds to wait after it or the final outcome."""
        self._ended(refused, verdict)
        level, line = logging.ERROR, str(refused)
        if not isinstance(verdict, Stopped):
            level, line = logging.WARNING, f"{refused} (trying again in {verdict:.1f} s)"
        self._emit(Event("refused", line, level, refused.code))

    def _ended(self, end: Refused | Closed, verdict: float | Stopped, **changes: Any) -> None:
        """Report in the state what ended an attempt or a session."""
        self._save(
            code=end.code,
            sentence=verdict.sentence if isinstance(verdict, Stopped) else end.sentence,
            actionable=isinstance(end, Refused) and end.actionable,
            next=None if isinstance(verdict, Stopped) else self._timestamp(verdict),
            must_act=isinstance(verdict, Stopped),
            **changes,
        )

    def _warn(self, sentence: str) -> None:
        self._emit(Event("warning", sentence, logging.WARNING))

    def _emit(self, event: Event) -> None:
        try:
            self._observe(event)
        except Exception:  # an error in the observer must not end the connection
            logger.exception("the observer failed")

    def _save(self, **changes: Any) -> None:
        """Change the stored state; a full disk must not end the connection."""
        try:
            self._locked.update_state(**changes)
        except FolderUnusable as problem:
            self._warn(str(problem))

    def _timestamp(self, later: float = 0.0) -> str:
        when = datetime.fromtimestamp(self._environment.now() + later, UTC)
        return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _default_folder() -> Path:
    try:
        return platform.default_state_dir()
    except RuntimeError:
        raise FolderUnusable("this user has no home folder: name a state folder") from None
