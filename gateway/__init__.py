"""The ICE gateway: provisions ICE agents, admits those with a genuine token, drops them live.

The map, from the top down. Imports only go down; `tests/unit/test_structure.py` holds it.

    cli/  demo                        the commands, and the story of an ICE on one screen
    app                               the composition root: the only place that knows everything
    admin/   endpoint  health         HTTP: the admin API, the ICE's handshake, probes
    metrics  respond  listener        what all of HTTP shares
    dispatch                          sends an ICE its operations, one at a time
    admission  provisioning           the use cases: a rule and a store call each
    operations accounts   keys  nodes  backup  restore  transfer
    drops  hold  documents            what an action ended; a restored table that waits; what people see
    tail  presence  vitals            followers of the event log, writers of who is connected, what is wrong
    membership  lease                 this node among others on one database, and how long it may act
    progress  clerk  watches          how far operations are, which are overdue, who waits for them
    hub  session  wire  heartbeat     this node's live sockets
    handover                          how a connection leaves aiohttp and becomes a wire's
    logs  signals  standard_streams   what the process says and hears, from its start to its end
    store/  keyfile  handles  tls     SQL, a noun a file; the keys on disk; the system's limits; TLS
    ice  operation  event  tokens     the rules, pure: no I/O, no clock of their own
    proof  roles  errors  settings  ...

Read `ice` (the whole state table), then `admission`, then `app`. Two rules carry the safety:

- *Add, then check* (`hub`, `endpoint`): an arriving ICE is in the hub before its row is read, so that
  no deregistration can slip between the look and the admission.
- *The domain decides, the store compares and swaps* (`ice`, `store/ices`): of two who race exactly one
  wins, and the event is written in the transaction of the change.

And one way for a change to travel: action, commit (row and event), `tail` reads the event, `hub` drops.
"""

import client

__version__ = client.__version__
"""One for both: an ICE's machine has `client/` without `gateway/`, so it stands there."""

SERVER_NAME = "ice-gateway"
"""How its HTTP answers name it (RFC 9110 section 10.2.4)."""
