"""The reference ICE client, and the wire protocol that it shares with the gateway.

`agent` is the connection (`IceClient`), `cli` the `ice-client` command, `eventloop` what runs it. Beneath them: `handshake`
(one attempt), `backoff` (every rule for refusals and close codes), `operations` (the work),
`identity` (the state folder), `credentials` (token, key, proof), `platform` (what differs between
operating systems), and `protocol`, the vocabulary, which the gateway imports too. `examples` has handlers
for `--handlers`. Nothing here imports `gateway`: an ICE's machine runs this folder alone.
"""

__version__ = "0.1.0"
