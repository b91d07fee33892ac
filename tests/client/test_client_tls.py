"""TLS is verified, by the system's certificates and those of `--ca-file`."""

import asyncio
from datetime import timedelta

import pytest

from tests.client.scripted_gateway import ScriptedGateway
from tests.support.authority import Authority


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def connect_once(make_ice, authority, time, events):
    """Try to connect, and tell what is said when that fails."""

    async def connect(url):
        time.delays.clear()
        events.clear()
        async with make_ice(gateway_url=url, ca_file=authority.file):
            await time.after_sleeps(1)
        return str(events[1])

    return connect


@pytest.fixture
async def serve(aiohttp_server, authority):
    async def serve(*certificate):
        gateway = ScriptedGateway()
        tls = authority.server_context(*(certificate or ("127.0.0.1",)))
        server = await aiohttp_server(gateway.app(), ssl=tls)
        gateway.tls = tls
        gateway.url = f"https://127.0.0.1:{server.port}"
        return gateway

    return serve


async def test_a_gateway_of_the_ca_file_is_trusted(serve, make_ice, authority):
    gateway = await serve()
    async with make_ice(gateway_url=gateway.url, ca_file=authority.file) as ice:
        assert (await ice.connected()).ice_name == "lab-1"

    assert gateway.handshakes[0].claims["htu"] == f"{gateway.url}/ice/v1"


@pytest.mark.parametrize("insecure", [False, True])
async def test_an_unknown_authority_is_not_trusted(insecure, serve, make_ice, time, events):
    gateway = await serve()
    async with make_ice(gateway_url=gateway.url, insecure=insecure):
        await time.after_sleeps(1)

    assert gateway.handshakes == [], "the token must not be sent to a stranger"
    assert str(events[1]).startswith(
        "certificate-untrusted: The gateway's certificate is not trusted: if your own authority signed"
        " it, name that authority with --ca-file. ("
    )


ANOTHER = "is not valid for 127.0.0.1: give --gateway a name that it is valid for."
EXPIRED = "has expired: its operator must renew it, or this machine's clock is wrong."
NOT_YET = "is not valid yet: is this machine's clock right?"


@pytest.mark.parametrize(
    ("host", "begins", "sentence"),
    [("192.0.2.1", 0, ANOTHER), ("127.0.0.1", -2, EXPIRED), ("127.0.0.1", 2, NOT_YET)],
)
async def test_a_certificate_that_does_not_hold_is_not_trusted(
    host, begins, sentence, serve, connect_once
):
    gateway = await serve(host, timedelta(hours=begins))
    line = await connect_once(gateway.url)

    assert gateway.handshakes == []
    assert line == (
        f"certificate-untrusted: The gateway's certificate {sentence} (trying again in 1.0 s)"
    )


@pytest.fixture
def another(tmp_path):
    """An authority of which nobody has heard yet."""
    (tmp_path / "another").mkdir()
    return Authority(tmp_path / "another")


@pytest.mark.parametrize("named", ["ca_file", "system"])
async def test_certificates_are_read_again_for_each_attempt(
    named, *, serve, make_ice, authority, another, tmp_path, time, events, monkeypatch
):
    """The gateway's certificate is renewed, by another authority."""
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.file.read_bytes())
    options = {"ca_file": trusted}
    if named == "system":
        options = {}
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    gateway = await serve()
    async with make_ice(gateway_url=gateway.url, **options) as ice:
        await ice.connected()
        session = await gateway.held.get()
        gateway.tls.load_cert_chain(*another.certificate("127.0.0.1"))
        await session.socket.close(code=4201)
        await time.after_sleeps(3)
        assert [event.code for event in events if event.kind == "refused"][:2] == [
            "certificate-untrusted"
        ] * 2
        trusted.write_bytes(another.file.read_bytes())
        await asyncio.wait_for(gateway.after_script(), 10)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read: No such file or directory"), (b"", "holds no PEM certificate")],
)
async def test_a_ca_file_that_cannot_be_read_any_more_is_told_and_tried_again(
    content, reason, *, serve, make_ice, authority, tmp_path, time, events
):
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.file.read_bytes())
    gateway = await serve()
    async with make_ice(gateway_url=gateway.url, ca_file=trusted) as ice:
        await ice.connected()
        session = await gateway.held.get()
        if content is None:
            trusted.unlink()
        else:
            trusted.write_bytes(content)
        await session.socket.close(code=4201)
        await time.after_sleeps(3)
        trusted.write_bytes(authority.file.read_bytes())
        await asyncio.wait_for(gateway.after_script(), 10)

    told = [str(event) for event in events if event.kind == "refused"]
    assert told[0] == f"ca-file-unusable: {trusted} {reason} (trying again in 2.0 s)"


async def test_http_and_https_confused_is_said(serve, gateway, connect_once):
    plain, tls = gateway.url.removeprefix("http://"), (await serve()).url.removeprefix("https://")

    assert await connect_once(f"https://{plain}") == (
        f"unreachable: The server at {plain} does not speak TLS: check the port, and http or https."
        " (trying again in 1.0 s)"
    )
    assert await connect_once(f"http://{tls}") == (
        f"unreachable: The connection to {tls} was closed before there was an answer. Does it speak"
        " https? (trying again in 1.0 s)"
    )
