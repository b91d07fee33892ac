"""The ICE gateway: provisions ICE agents, admits those with a genuine token, drops them live.

The map. A module imports from packages below its own and from its own package; `services` and `node` stand
side by side and do not know each other. `tests/unit/test_structure.py` checks this.

    cli        the commands, a file per noun or verb, listed in `cli.COMMANDS`; they work with `cli.admin_port`, on a
               database or over the API
    app        the composition root: opens the store and the keys, makes node and services, listens; the order of a stop
    admin      the admin's page (Jinja templates) and API: callers and their rights, requests, responses
    web        HTTP and WebSocket plumbing, client addresses, and the ICE's endpoint
    services   what an admin can change, once for page, API and commands; the JSON documents of API and commands
    node       what one running gateway holds and does: admission, sessions, drops, operations in progress
    store      everything durable: SQL, one noun a file; one text of each query for both engines, a schema for each.
               Page, API and commands read lists from here. `store.tables` says of each table what is moved and copied
    runtime    the process and its machine: settings, logs, clocks, files, sockets, TLS, requests to other servers
    core       rules, values and catalogues; pure: no I/O and no clock

`client.protocol` is below all of them: what an ICE and the gateway exchange, with every refusal and close code
that an ICE may meet. So is `client.systemd`, by which both report their state to systemd. `web.handshake` and
`web.ice_endpoint` refuse a handshake by its form and for overload, `node.screening` by token and proof, `core.ice` by
status and key; `core.problems` makes each an HTTP answer, and has the refusals of an admin. `core.audit_event` has the
actions of the audit log, `core.operation` the errors of operations.

What an operator may set is in `runtime.settings` and `config/gateway.toml`. Other limits are constants beside the code
that keeps them; `app.Tuning` hands other values in for tests.

Read `core.ice` (the whole state table), then `node.admission`, `node.node` and `app`. Two rules make it safe:

- *Add, then check* (`node.hub`, `node.admission`): an arriving ICE is in the hub before its row is read, so that no
  deregistration can slip in between the read and the admission.
- *The domain decides, the store compares and swaps* (`core.ice`, `store.ices`): of two concurrent actions exactly
  one wins, and the event is written in the transaction of the change.

Every change takes the same path: action, commit (row and event), `node.log_follower` reads the event, `node.hub`
drops. The action waits for its own node in `node.revocations` and for the others in `store.acknowledgements`, to which
each reports by `node.membership`.

The gateway itself sends requests in two places. `services.sso` logs users in at the issuer of the settings
(`services.issuer`, by `runtime.http_client`). `node.webhook_sender` sends events of the log to webhooks, with what
`services.webhook_outbox` reads and stores (by `runtime.webhook_client`).
"""

import client

__version__ = client.__version__
"""Client and gateway have one version. It is in `client/`, because the client must not import `gateway`."""

SERVER_NAME = "ice-gateway"
"""The name of the gateway in its HTTP answers (RFC 9110 section 10.2.4)."""
