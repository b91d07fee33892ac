"""Single sign-on in a browser: an issuer of another site, and cookies as a browser keeps them."""

from __future__ import annotations

import pytest_asyncio
from playwright.async_api import expect

from tests.browser.admin import violations
from tests.sso.oidc_provider import SECRET, free_port, needed, oidc_provider
from tests.support.harness import harness


@pytest_asyncio.fixture(loop_scope="session")
async def served(tmp_path):
    """The URL of a gateway at localhost: for a browser that is another site than the issuer's 127.0.0.1."""
    needed()
    port = free_port()
    url = f"http://localhost:{port}"
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    with oidc_provider(url) as issuers:
        async with harness(
            tmp_path,
            server__port=port,
            sso__issuer=issuers["userinfo"],
            sso__client_id="ice-ES256",
            sso__client_secret_file=str(secret),
            sso__roles={"ice-admins": "admin"},
            sso__redirect_url=f"{url}/admin/sso/callback",
        ):
            yield url


async def test_a_person_logs_in_and_arrives_where_they_wanted_to(browser, served):
    context = await browser.new_context()
    context.set_default_timeout(8000)
    page = await context.new_page()
    await page.goto(f"{served}/admin/users?q=alice")
    assert await violations(page) == ""
    await page.get_by_role("button", name="Log in with single sign-on").click()
    await page.get_by_label("User").fill("alice")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page).to_have_url(f"{served}/admin/users?q=alice")
    await expect(page.get_by_role("link", name="alice.smith (admin)")).to_be_visible()
    cookies = {each["name"]: each["sameSite"] for each in await context.cookies(served)}
    assert cookies["ice_login"] == "Strict"
    assert "ice_sso" not in cookies
    await page.go_back()
    assert "/callback" not in page.url, "the address with the code stays in no history"
    await context.close()


async def test_a_refusal_is_a_sentence_on_the_login_page(browser, served):
    context = await browser.new_context()
    context.set_default_timeout(8000)
    page = await context.new_page()
    await page.goto(f"{served}/admin/login")
    await page.get_by_role("button", name="Log in with single sign-on").click()
    await page.get_by_label("User").fill("bob")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_contain_text(
        "None of your groups may use this gateway."
    )
    await expect(page.get_by_label("Password")).to_be_visible()
    await context.close()
