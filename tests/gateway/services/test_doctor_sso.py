"""What `ice-gateway doctor` says of single sign-on."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest

from gateway.core.times import utc_now
from gateway.services.diagnostics import Level
from gateway.services.doctor_sso import examine
from tests.support import evil_issuer
from tests.support.evil_issuer import CLIENT, JWKS, METADATA, SECRET, TOKEN, EvilIssuer
from tests.support.harness import settings_for

CALLBACK = "http://127.0.0.1:8440/admin/sso/callback"


@pytest.fixture
async def issuer():
    async with EvilIssuer().running() as started:
        started.metadata["backchannel_logout_supported"] = True
        yield started


@pytest.fixture
def secret(tmp_path):
    file = tmp_path / "secret"
    file.write_text(SECRET)
    file.chmod(0o600)
    return file


async def findings(folder, clock=utc_now, seconds=10.0, **options):
    """What is not as it should be, and all that is said."""
    found = await examine(settings_for(folder, **options), clock, seconds=seconds)
    bad = [f"{each.level}: {each.text}" for each in found if each.level is not Level.OK]
    return bad, " ".join(each.text for each in found)


@pytest.fixture
def ask(tmp_path, issuer, secret):
    async def asked(clock=utc_now, seconds=10.0, **changed):
        options = {
            "sso__issuer": issuer.url,
            "sso__client_id": CLIENT,
            "sso__client_secret_file": str(secret),
            "sso__roles": {"lab": "member"},
            "sso__redirect_url": CALLBACK,
        }
        return await findings(tmp_path, clock, seconds, **options | changed)

    return asked


async def test_without_an_issuer_there_is_nothing_to_check(tmp_path):
    assert await findings(tmp_path) == ([], "")


async def test_all_is_well(ask, issuer):
    bad, text = await ask()
    assert bad == []
    assert "scopes openid profile email groups" in text
    assert f"knows the client {CLIENT}" in text
    assert f"sends browsers back to {CALLBACK}" in text
    assert "clock differs by" in text


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        (METADATA, evil_issuer.fails, "500 where its metadata should be"),
        (METADATA, evil_issuer.hangs, "did not answer within 0.2 seconds"),
        (JWKS, evil_issuer.html, "keys cannot be used"),
        (TOKEN, evil_issuer.fails, "no tokens can be had"),
        ("/authorize", evil_issuer.html, "did not confirm"),
        ("/authorize", evil_issuer.redirects, "did not confirm"),
    ],
)
async def test_an_issuer_that_does_not_work(ask, issuer, path, answer, said):
    issuer.answers[path] = answer
    [bad], _ = await ask(seconds=0.2 if answer is evil_issuer.hangs else 10.0)
    assert said in bad
    assert bad.startswith("warning" if path == "/authorize" else "FAILED")


async def test_a_wrong_secret(ask, secret):
    secret.write_text("another")
    [bad], _ = await ask()
    assert bad == f"FAILED: the issuer does not accept the client {CLIENT} (invalid_client)"


async def test_a_secret_that_others_can_read(ask, secret):
    secret.chmod(0o644)
    assert (await ask())[0] == [f"warning: {secret} can be read by others"]
    os.remove(secret)  # noqa: PTH107 - a file of the test
    [bad], _ = await ask()
    assert "cannot be read" in bad


async def test_clocks_that_differ(ask):
    [bad], _ = await ask(lambda: utc_now() + timedelta(seconds=90))
    assert bad.startswith("FAILED: the issuer's clock differs by")


async def test_what_the_issuer_does_not_offer(ask, issuer):
    issuer.metadata["backchannel_logout_supported"] = None
    bad, _ = await ask(sso__scopes=["groups", "roles"])
    assert [each.partition(":")[0] for each in bad] == ["warning", "warning"]
    assert "the scope roles" in bad[0]
    assert "does not announce back-channel logout" in bad[1]


async def test_settings_that_do_not_do(ask):
    [bad], _ = await ask(sso__client_id="")
    assert bad == "FAILED: sso.issuer needs sso.client_id"
