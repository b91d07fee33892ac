"""The pages of pools over HTTP: made, shown, changed and deleted, and who sees what."""

from __future__ import annotations

import json

import pytest

from gateway.core.roles import Role
from tests.support.harness import ADMIN
from tests.support.pages import said
from tests.support.work import connected

GPU = {"name": "GPU", "labels": "gpu=yes; os=linux", "ice_type": "", "description": "fast\r\nones"}


def told(answer):
    """What the page's script is told in a header."""
    return json.loads(answer.headers["HX-Trigger"])


def fault(answer):
    """The field that a refusal leads to, and what it says."""
    assert answer.status == 422, answer
    assert answer.headers["HX-Retarget"] == "#dialog-fault"
    return told(answer)["form-fault"]["field"], said(answer)


async def test_a_pool_is_made_shown_changed_and_deleted(running, root):
    assert "There is no pool." in said(await root.get("pools"))
    assert "Pool" not in said(await root.get("")).split("More filters")[1]
    await connected(running, "here", "ci-cd")
    await running.label("here", gpu="yes", os="linux")
    await running.settled()
    made = await root.post("pools", GPU)
    assert told(made)["toast"] == {"sentence": "The pool GPU is made. 1 ICE belongs to it."}
    assert "pools-changed" in told(made)
    assert (await running.admin.get("/pools/gpu")).json["description"] == "fast\nones"
    page = await root.get("pools")
    for part in ("GPU", "gpu=yes", "os=linux", "both", "fast"):
        assert part in said(page), part
    assert 'href="./?pool=GPU"' in page.text
    assert "GPU" not in (await root.part("pools?q=other")).text
    shown = await root.get("pools/gpu")
    for part in ("Made by root", "1 ICE", "nothing", "No API token is for this pool alone."):
        assert part in said(shown), part
    assert 'href="./?pool=GPU&amp;presence=connected"' in shown.text
    form = await root.get("pools/gpu/change")
    assert 'value="gpu=yes; os=linux"' in form.text
    changed = await root.post("pools/gpu/change", {"labels": "gpu=no", "ice_type": "ci-cd"})
    assert told(changed)["toast"] == {"sentence": "The pool GPU is changed. 0 ICEs belong to it."}
    assert "none: no ICE has all these labels and this type" in said(await root.get("pools/gpu"))
    assert "Delete GPU?" in said(await root.get("pools/gpu/delete"))
    deleted = await root.post("pools/gpu/delete")
    assert (deleted.status, deleted.headers["HX-Redirect"]) == (204, "./pools")
    assert (await root.get("pools/gpu")).status == 404
    audit = said(await root.get("audit"))
    assert "Made the pool GPU: gpu=yes, os=linux, type normal or ci-cd." in audit


@pytest.mark.parametrize(
    ("more", "field", "sentence"),
    [
        ({"name": "a b"}, "pool_name", "Name: needs 1 to 64 characters"),
        ({"name": "gpu"}, "pool_name", "Name: there is a pool GPU already"),
        ({"labels": ""}, "pool_labels", "Labels: a pool needs at least one label"),
        ({"labels": "gpu"}, "pool_labels", "gpu is not key=value"),
        ({"ice_type": "x"}, "pool_type", "choose Normal, CI/CD or both"),
        ({"description": "x" * 1001}, "pool_description", "a description has at most 1,000"),
    ],
)
async def test_a_refusal_appears_in_the_form(running, root, more, field, sentence):
    await root.post("pools", GPU)
    where, why = fault(await root.post("pools", {**GPU, "name": "other", **more}))
    assert where == field
    assert sentence in why


async def test_what_waits_keeps_a_pool(running, root):
    await root.post("pools", GPU)
    await running.admin.post("/pools/gpu/operations", {"kind": "execute"})
    assert "1 operation" in said(await root.get("pools/gpu"))
    assert "1 operation waits in this pool" in said(await root.get("pools/gpu/delete"))
    assert (await root.post("pools/gpu/delete")).status == 409


async def test_tokens_of_a_pool_are_made_and_shown(running, root):
    await root.post("pools", GPU)
    new = {"owner": "root", "label": "job", "expires_in": "30d"}
    made = await root.post("api-tokens", {**new, "pool": "gpu"})
    assert "It may operate the pool GPU and nothing else." in said(made)
    for refused, sentence in (
        ({"pool": "none"}, "Pool: there is no pool none"),
        ({"pool": "gpu", "ice_name": "x"}, "Pool: a token is for an ICE or for a pool"),
    ):
        answer = await root.post("api-tokens", {**new, **refused})
        assert told(answer)["form-fault"]["field"] == "token_pool"
        assert sentence in said(answer)
    assert "pool GPU alone" in said(await root.get("api-tokens?q=gpu"))
    shown = said(await root.get("pools/gpu"))
    assert "job" in shown
    assert "test" not in shown, "a token of no pool"
    assert "1 API token is for this pool." in said(await root.get("pools/gpu/delete"))


async def test_ices_are_filtered_by_pool(running, root, browse):
    await running.provision("in-pool")
    await running.provision("outside")
    await running.label("in-pool", gpu="yes", os="linux")
    await root.post("pools", GPU)
    page = await root.get("?pool=gpu")
    assert "in-pool" in said(page)
    assert "outside" not in said(page)
    assert "<option selected>GPU</option>" in page.text
    assert (await root.get("ice-names?pool=gpu")).text == '["in-pool"]'
    assert (await root.get("?pool=none")).status == 422
    alice = await browse(running, "alice", Role.MEMBER)
    assert "Pool" not in said(await alice.get(""))
    assert (await alice.get("?pool=gpu")).status == 403


async def test_an_auditor_sees_and_changes_nothing(running, root, browse):
    await root.post("pools", GPU)
    await running.gateway.services.accounts.create_token(ADMIN, "root", "job", 0, pool="gpu")
    eve = await browse(running, "eve", Role.AUDITOR)
    for address in ("pools", "pools/gpu"):
        page = await eve.get(address)
        assert page.status == 200
        for button in ("Make a pool", "Change", "Delete", "Revoke<"):
            assert button not in page.text
