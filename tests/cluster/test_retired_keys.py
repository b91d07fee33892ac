"""A token key is retired at one node while others still have their older copy of the key file."""

from __future__ import annotations

import contextlib
import shutil
import time

import pytest

from gateway.core.times import utc_now
from gateway.core.tokens import Key as SealingKey
from gateway.store import key_file
from tests.support.ice import Key, Nomad


@pytest.mark.long
async def test_a_key_that_one_node_has_retired_strands_nobody(place):
    files = {name: place.folder / f"{name}.json" for name in ("node-a", "node-b", "node-c")}
    key_file.create(files["node-a"])
    shutil.copy(files["node-a"], files["node-b"])

    async with contextlib.AsyncExitStack() as stack:

        async def join(name):
            return await stack.enter_async_context(
                place.join(name, tokens__key_file=str(files[name]))
            )

        a, b = await join("node-a"), await join("node-b")
        ice = Nomad(a.url, (await a.provision()).token)
        a._ices.append(ice)
        await (await ice.at(a).connect()).close()
        # Copied after each step, as docs/cluster.md says; of the last one B has no copy yet.
        new = SealingKey.generate(utc_now())
        both = key_file.read(files["node-a"]).with_key(new)
        old = both.seals
        promoted = both.sealing_with(new.kid)
        for ring in (both, promoted):
            for node, file in ((a, files["node-a"]), (b, files["node-b"])):
                key_file.replace(file, ring)
                node.gateway.services.provisioning.keys.reload()
        key_file.replace(files["node-a"], promoted.retiring(old))
        a.gateway.services.provisioning.keys.reload()
        for node in (a, b):
            await (await ice.at(node).connect()).close()
        # B's older copy keeps no node with the new one from starting.
        shutil.copy(files["node-a"], files["node-c"])
        c = await join("node-c")
        headers = ice.at(c).headers()
        await (await ice.connect(headers)).close()
        for node in (a, b, c):
            refused = await ice.at(node).refused(headers)
            assert "used before" in refused.problem["detail"], "a proof is good once in all of them"
        assert (await Nomad(c.url, ice.token, Key()).refused()).code == "key-mismatch"

        # Its clock is wrong, and a balancer sends it elsewhere each time.
        for asked, sent in ((a, b), (b, c), (c, a)):
            nonce = (await ice.at(asked).refused(iat=time.time() - 3600)).headers["DPoP-Nonce"]
            connection = await ice.at(sent).connect(iat=time.time() - 3600, nonce=nonce)
            await connection.close()
        last = await ice.at(b).connect()
        await a.act("lab-1", "deregister")
        await last.expect_dropped(4101)
        for node in (a, b, c):
            assert (await ice.at(node).refused()).code in {"token-invalid", "deregistered"}
