"""The reference ICE client, and the wire protocol that it shares with the gateway.

`agent` is the connection (`IceClient`), `enrolment` gets the token of a machine that has an enrolment key, `cli` is
the `ice-client` command, `options` its options, `eventloop` its event loop. Below them: `gateway_client` (what both
clients share), `handshake` (one attempt), `gateway_session` (a request and its refusal), `backoff` (the rules for
refusals and close codes), `operations` (the work), `operation_log` (its output), `identity` (the state folder),
`consent` (what others may send), `credentials` (token, key, proof), `platform` (what differs between operating
systems), and `protocol`, which the gateway imports too. `examples` has handlers for `--handlers`. Nothing here
imports `gateway`: the machine of an ICE needs only this package.
"""

__version__ = "0.1.0"
