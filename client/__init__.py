"""The reference ICE client, and the wire protocol that it shares with the gateway.

`protocol` is the vocabulary (imported by the gateway too), `identity` the key and token on disk,
`agent` the connection (`IceClient`), `platform` what differs between operating systems, `cli` the
`ice-client` command. Nothing here imports `gateway`: an ICE's machine runs this folder alone.
"""

__version__ = "0.1.0"
