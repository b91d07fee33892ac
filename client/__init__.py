"""The reference ICE client, and the wire protocol that it shares with the gateway.

The names in `__all__` are public. The modules are not, and may change in any release, except those that a user gives to
`--handlers`: `examples`, and `pytest_suites`, an older name of one of them. docs/client.md shows the library.

`agent` is the connection (`IceClient`), `enrolment` gets the token of a machine that has an enrolment key, `cli` is
the `ice-client` command, `state_commands` has those of its commands that connect to nothing, `options` their options,
`output` and `log_file` what they print, `eventloop` the event loop. Below them: `gateway_client` (what both
clients share), `handshake` (one attempt), `gateway_session` (a request and its refusal), `backoff` (the rules for
refusals and close codes), `operations` (the work), `operation_log` (its output), `identity` (the state folder),
`consent` (what others may send), `credentials` (token, key, proof), `exceptions` (the base of what is raised),
`platform` (what differs between operating systems), and two that the gateway imports too: `protocol` (with the
refusal and close codes of `codes`, and the bounds of `json_bounds`), and `systemd` (what a service tells systemd). `conformance` tries other ICE programs against the protocol. Nothing here imports
`gateway`: the machine of an ICE needs only this package.

Tested in tests/client/test_client_library.py.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = ["IceClient", "IceClientError", "Operation", "OperationFailed", "Report", "Welcome"]

if TYPE_CHECKING:
    from client.agent import IceClient
    from client.exceptions import IceClientError
    from client.operations import Operation, OperationFailed, Report
    from client.protocol import Welcome
else:
    # Imported at their first use (PEP 562): the gateway imports `client.protocol`, and needs none of aiohttp's client.
    _HOMES = {
        "IceClient": "client.agent",
        "IceClientError": "client.exceptions",
        "Operation": "client.operations",
        "OperationFailed": "client.operations",
        "Report": "client.operations",
        "Welcome": "client.protocol",
    }

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
