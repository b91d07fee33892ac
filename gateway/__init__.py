"""The ICE gateway: provisions ICE agents, admits those with a genuine token, drops them live.

The map. A module imports from packages below its own and from its own package; `services` and `node` stand
side by side and do not know each other. `tests/unit/test_structure.py` holds this.

    cli        the commands, a file each
    app        the composition root: opens the store and the keys, makes node and services, listens
    admin      the admin's page and API: who may ask, what is asked, what is shown
    web        HTTP and WebSocket plumbing, and the ICE's endpoint
    services   what an admin can do, once for page, API and commands
    node       what one running gateway holds and does: admission, sessions, drops, work on its way
    store      everything durable: SQL, a noun a file, one text for both engines
    runtime    the process and its machine: settings, logs, clocks, files, sockets, TLS
    core       rules, values and catalogues; pure: no I/O, no clock of its own

`client.protocol` lies below all of them: the words that an ICE and the gateway exchange.

Read `core.ice` (the whole state table), then `node.admission`, `node.node` and `app`. Two rules carry the
safety:

- *Add, then check* (`node.hub`, `node.admission`): an arriving ICE is in the hub before its row is read, so
  that no deregistration can slip between the look and the admission.
- *The domain decides, the store compares and swaps* (`core.ice`, `store.ices`): of two that race exactly one
  wins, and the event is written in the transaction of the change.

A change travels in one way: action, commit (row and event), `node.log_follower` reads the event, `node.hub`
drops.
"""

__version__ = "0.1.0"

SERVER_NAME = "ice-gateway"
"""How its HTTP answers name it (RFC 9110 section 10.2.4)."""
