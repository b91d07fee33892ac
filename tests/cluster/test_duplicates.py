"""Two copies of an ICE at two nodes of a cluster."""

from __future__ import annotations

from tests.support.ice import Nomad


async def test_copies_at_two_nodes_are_found(cluster):
    original = await cluster.ice()
    copied = Nomad(original.url, original.token, original.key)
    for ice, node, name in ((original, cluster.a, "desk"), (copied, cluster.b, "clone")) * 2:
        connection = await ice.at(node).connect()
        connection.hello(hostname=name, instance=f"instance of {name}")
        await connection.round_trip()
        await node.settled()
    answer = await cluster.c.eventually(
        "/ices/lab-1", lambda answer: answer.json["attention"] == ["duplicate"]
    )
    assert answer.json["connection"]["node"] == "node-b"
    [event] = (await cluster.c.admin.get("/events?action=duplicate")).json["items"]
    assert [copy["hostname"] for copy in event["detail"]["copies"]] == ["clone", "desk"]
    for connection in copied.connections:
        await connection.close()
