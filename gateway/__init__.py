"""The ICE gateway: provisions ICE agents, admits those with a genuine token, drops them live.

The map. A module imports from packages below its own and from its own package; `services` and `node` stand
side by side and do not know each other. `tests/unit/test_structure.py` checks this.

    cli        the commands, a file each
    app        the composition root: opens the store and the keys, makes node and services, listens
    admin      the admin's page and API: callers and their rights, requests, responses
    web        HTTP and WebSocket plumbing, client addresses, and the ICE's endpoint
    services   what an admin can do, once for page, API and commands; the JSON documents that they show
    node       what one running gateway holds and does: admission, sessions, drops, operations in progress
    store      everything durable: SQL, one noun a file; one text of each query for both engines, a schema for each
    runtime    the process and its machine: settings, logs, clocks, files, sockets, TLS
    core       rules, values and catalogues; pure: no I/O and no clock

`client.protocol` is below all of them: what an ICE and the gateway exchange, with every refusal and close code
that an ICE may meet. `core.problems` has the refusals of an admin, `core.audit_event` the actions of the audit log,
and `core.operation` the errors of operations.

Read `core.ice` (the whole state table), then `node.admission`, `node.node` and `app`. Two rules make it safe:

- *Add, then check* (`node.hub`, `node.admission`): an arriving ICE is in the hub before its row is read, so that no
  deregistration can slip in between the read and the admission.
- *The domain decides, the store compares and swaps* (`core.ice`, `store.ices`): of two concurrent actions exactly
  one wins, and the event is written in the transaction of the change.

Every change takes the same path: action, commit (row and event), `node.log_follower` reads the event, `node.hub`
drops, and `node.revocations` confirms that to the waiting action (`store.acknowledgements`: for other nodes).
"""

import client

__version__ = client.__version__
"""Client and gateway have one version. It is in `client/`, because an ICE's machine has no `gateway/`."""

SERVER_NAME = "ice-gateway"
"""The name of the gateway in its HTTP answers (RFC 9110 section 10.2.4)."""
