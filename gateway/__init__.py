"""The ICE gateway: provisions ICE agents, admits those with a genuine token, drops them live.

The map. A module imports from packages below its own and from its own package; `services` and `node` stand
side by side and do not know each other. `tests/unit/test_structure.py` holds this.

    cli        the commands, a file each
    app        the composition root: opens the store and the keys, makes node and services, listens
    admin      the admin's page and API: who may ask, what is asked, what is shown
    web        HTTP and WebSocket plumbing, client addresses, and the ICE's endpoint
    services   what an admin can do, once for page, API and commands; the JSON documents that they show
    node       what one running gateway holds and does: admission, sessions, drops, operations in progress
    store      everything durable: SQL, a noun a file; one text of each query for both engines, a schema for each
    runtime    the process and its machine: settings, logs, clocks, files, sockets, TLS
    core       rules, values and catalogues; pure: no I/O, no clock of its own

`client.protocol` lies below all of them: what an ICE and the gateway exchange, with every refusal and close code
that an ICE may meet. What an admin may meet is in `core.problems`, the audit log's actions are in
`core.audit_event`, the errors of operations in `core.operation`.

Read `core.ice` (the whole state table), then `node.admission`, `node.node` and `app`. Two rules carry the
safety:

- *Add, then check* (`node.hub`, `node.admission`): an arriving ICE is in the hub before its row is read, so
  that no deregistration can slip between the look and the admission.
- *The domain decides, the store compares and swaps* (`core.ice`, `store.ices`): of two that race exactly one
  wins, and the event is written in the transaction of the change.

A change travels in one way: action, commit (row and event), `node.log_follower` reads the event, `node.hub`
drops, and `node.revocations` confirms that to the waiting action (`store.acknowledgements`: for other nodes).
"""

import client

__version__ = client.__version__
"""One for both: an ICE's machine has `client/` without `gateway/`, so it stands there."""

SERVER_NAME = "ice-gateway"
"""How its HTTP answers name it (RFC 9110 section 10.2.4)."""
