"""The ICE gateway: provisions ICE agents, admits those with a genuine token, drops one as soon as an admin revokes it.

The map, from top to bottom. A module imports from its own package and from those below it; `services` and `node` stand
side by side and do not know each other. `tests/unit/test_structure.py` checks this.

    cli        the commands, a file per noun or verb, listed in `cli.COMMANDS`; they call the interface in
               `cli.admin_port`, which works on a database or over the API
    app        the composition root: opens the store and the keys, makes node and services, listens; the order of a stop
    admin      the admin's page (`pages/`, with `templates/` and `static/`) and API (`api/`): callers and their rights,
               requests, responses
    web        HTTP and WebSocket plumbing, client addresses, and the endpoints of ICEs and of enrolments
    services   what an admin can change, once for page, API and commands; the JSON documents of API and commands
    node       what one running gateway holds and does: admission, sessions, drops, operations in progress
    store      everything durable: SQL, a noun in one file or in a few. Both engines share the text of each query; each has its
               own schema. Page, API and commands read lists from here. `store.tables` says of each table what moving,
               backing up, restoring and pruning do with it
    runtime    the process and its machine: settings, logs, clocks, files, sockets, TLS, requests to other servers
    core       rules, values and catalogues; pure: no I/O and no clock

`client.protocol` is below all of them: what an ICE and the gateway exchange, with every refusal and close code
that an ICE may meet (they are in `client.codes`). So is `client.systemd`, by which both report their state to systemd.

A handshake is refused for its form (`web.handshake`), for overload (`web.ice_endpoint`), while the node stops
(`node.node`), for token and proof (`node.screening`), while the store cannot be used (`node.admission`), and for the
status and key of the ICE (`core.ice`). `core.problems` turns any code into an HTTP answer, and has the codes of an admin's
requests. `core.operation` has the errors: why an operation ended without a result. The actions of the audit log are
those of `core.ice` and of `core.audit_event`.

What an operator may set is in `runtime.settings` and `config/gateway.toml`. Other limits are constants beside the code
that keeps them; tests replace some of them through `app.Tuning`.

Read `core.ice` (the whole state table), then `node.admission`, `node.node` and `app`. Two rules make it safe:

- *Add, then check* (`node.hub`, `node.admission`): an arriving ICE is in the hub before its row is read, so that no
  deregistration can slip in between the read and the admission.
- *The domain decides, the store compares and swaps* (`core.ice`, `store.ices`): of two concurrent actions exactly
  one wins, and the event is written in the transaction of the change.

Every change takes the same path: action, commit (row and event), `node.log_follower` reads the event, `node.hub`
drops. The action waits in `node.revocations`: for its own node and, through `store.acknowledgements`, for the others.
Each node writes how far it is and what it dropped (`node.membership`, by `store.nodes`). A command waits in
`store.acknowledgements` itself. The outcome is a `core.revocation.Confirmation`.

The gateway itself sends requests to two kinds of server. The issuer of single sign-on: `services.issuer`, through
`runtime.http_client`. Webhooks: `services.webhook_outbox` posts through `runtime.webhook_client`, for `node.webhook_sender`
at its pace, and for `services.webhooks` what an admin tests or sends again.
"""

import client

__version__ = client.__version__
"""Client and gateway have one version. It is in `client/`, because the client must not import `gateway`."""

SERVER_NAME = "ice-gateway"
"""The name of the gateway in its HTTP answers (RFC 9110 section 10.2.4)."""
