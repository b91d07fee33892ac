"""The commands of pools, on the database of a running gateway and over its API."""

from __future__ import annotations

import json

import pytest

from gateway.core.secret import Secret
from tests.support.work import connected

SET = ("pools", "set", "GPU", "--label", "gpu=yes")


@pytest.fixture
async def ice(running):
    """A connected ICE of the pool `GPU`."""
    await connected(running, "here", "ci-cd")
    await running.label("here", gpu="yes")
    await running.settled()


async def test_a_pool_is_set_shown_and_deleted(running, admin, ice):
    made = await admin(*SET, "--label", "os=", "--description", "fast", "--type", "ci-cd")
    assert made.output == "GPU: ICEs: 0, connected: 0, busy: 0\n"
    assert (await admin(*SET)).output == "GPU: ICEs: 1, connected: 1, busy: 0\n"
    pool = (await running.admin.get("/pools/gpu")).json
    assert (pool["labels"], pool["ice_type"], pool["description"]) == ({"gpu": "yes"}, None, "")
    assert json.loads((await admin("pools", "list", "--json")).stdout) == [pool]
    assert json.loads((await admin("pools", "show", "gpu", "--json")).stdout) == pool
    heading, row = (await admin("pools", "list")).stdout.splitlines()
    assert heading.split() == ["NAME", "TYPE", "LABELS", "ICES", "CONNECTED", "BUSY", "DESCRIPTION"]
    assert row.split() == ["GPU", "-", "gpu=yes", "1", "1", "0", "-"]
    shown = (await admin("pools", "show", "gpu")).stdout
    assert 'ices           {"total":1,"connected":1,"busy":0}\n' in shown
    listed = json.loads((await admin("ices", "list", "--pool", "gpu", "--json")).stdout)
    assert [each["ice_name"] for each in listed] == ["here"]
    done = await admin("ices", "disconnect", "--where", "pool=GPU", "--dry-run")
    assert done.stdout == "here\n"
    assert (await admin("pools", "delete", "gpu")).output == ""
    assert json.loads((await admin("pools", "list", "--json")).stdout) == []


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        (("pools", "set", "gpu"), 2, "Missing option '--label'"),
        (("pools", "set", "gpu", "--label", "gpu"), 2, "gpu: KEY=VALUE sets a label"),
        (("pools", "set", "gpu", "--label", "GPU=x"), 1, "labels.GPU: a label's key has"),
        (("pools", "set", "a b", "--label", "a=b"), 1, "name: needs 1 to 64 characters"),
        (("pools", "show", "none"), 1, "There is no pool none."),
        (("pools", "delete", "none"), 1, "There is no pool none."),
        (("ices", "list", "--pool", "none"), 1, "pool: there is no pool none"),
        (("ices", "disconnect", "--where", "pool=none", "--dry-run"), 1, "there is no pool none"),
    ],
)
async def test_what_is_refused(admin, asked, status, said):
    refused = await admin(*asked, status=status)
    assert said in refused.stderr
    assert refused.stdout == ""


async def test_a_token_for_a_pool(running, admin):
    create = ("api-tokens", "create", "--user", "root", "--name", "job", "--pool", "gpu")
    refused = await admin(*create, status=1)
    assert refused.output == "ice-gateway: pool: there is no pool gpu\n"
    await admin(*SET)
    made = await admin(*create)
    assert " of root, for the pool GPU alone, expires: 2" in made.stderr
    caller = await running.gateway.services.accounts.authenticate(Secret(made.stdout.strip()))
    assert (caller.pool, caller.ice) == ("GPU", None)
    refused = await admin(*create, "--ice", "here", status=1)
    assert "pool: a token is for an ICE or for a pool, not for both" in refused.output
