"""The conformance kit: `ice-client conformance` plays a gateway and says what an ICE program does not do.

`sentences` has the sentences of docs/protocol.md that the kit tries, `report` the verdict on each. The rules are pure:
`request_rules` judges a handshake and its proof, `message_rules` what an ICE sends then, `backoff_rules` its waits.
`gateway` is the gateway, on loopback; `program` starts and kills the ICE; `stage` is what a scenario has. `scenarios`
holds the scenarios, `runner` runs them, and `cli` is the command. Nothing here is needed to run an ICE.
"""
