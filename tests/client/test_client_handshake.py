import ssl

import pytest

from client.endpoint import BadAddress, BadCertificateFile, Endpoint, PlainHttp, tls
from client.environment import Waits
from client.handshake import Connector
from tests.client.scripted_gateway import NOW, ScriptedGateway


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://gw.example", "https://gw.example/ice/v1"),
        ("https://gw.example/", "https://gw.example/ice/v1"),
        ("https://gw.example:8440", "https://gw.example:8440/ice/v1"),
        ("https://gw.example/a/b/", "https://gw.example/a/b/ice/v1"),
        ("https://[::1]:8440", "https://[::1]:8440/ice/v1"),
        ("http://localhost:8440", "http://localhost:8440/ice/v1"),
        ("http://127.0.0.9", "http://127.0.0.9/ice/v1"),
        ("http://127.255.255.255", "http://127.255.255.255/ice/v1"),
        ("http://LocalHost", "http://LocalHost/ice/v1"),
        ("http://[::1]:1", "http://[::1]:1/ice/v1"),
        ("HTTPS://gw.example", "https://gw.example/ice/v1"),
    ],
)
def test_the_endpoint_lies_under_the_base(base, url):
    assert Endpoint.of(base).url == url


@pytest.mark.parametrize(
    "base",
    [
        "",
        "gw.example",
        "gw.example:8440",
        "wss://gw.example",
        "ftp://gw.example",
        "https://",
        "https://:8440",
        "https://gw.example:port",
        "https://gw.example:99999",
        "https://gw.example:0",
        "https://[::1",
        "https://gw.example?x=1",
        "https://gw.example#top",
        "https://ada@gw.example",
        "https://ada:secret@gw.example",
        "https://gw.example/a b",
        "https://gw.exämple",
        "https://gw.example/\r\nX: y",
        "https://gw.example/ice/v1",
    ],
)
def test_what_is_no_base_url_is_refused_in_one_line(base):
    with pytest.raises(BadAddress) as caught:
        Endpoint.of(base)

    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "base",
    [
        *("http://gw.example", "http://192.0.2.1", "http://localhost.example", "http://0.0.0.0"),
        *("http://128.0.0.1", "http://[::2]", "http://[::ffff:127.0.0.1]", "http://127.1"),
    ],
)
def test_plain_http_beyond_loopback_is_refused(base):
    with pytest.raises(PlainHttp, match="--insecure"):
        Endpoint.of(base)

    assert Endpoint.of(base, insecure=True).exposed, "who insists is allowed, and warned"


def test_a_ca_file_is_trusted_besides_the_system(tmp_path):
    with pytest.raises(BadCertificateFile, match="cannot be read"):
        tls(tmp_path / "missing.pem")
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(BadCertificateFile, match="no PEM certificate"):
        tls(tmp_path / "empty.pem")

    context = tls(None)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


async def test_netrc_does_not_get_between(aiohttp_server, tmp_path, monkeypatch):
    gateway = ScriptedGateway()
    server = await aiohttp_server(gateway.app())
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ada password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    # aiohttp reads netrc where it is to look for proxies itself, which is not done for loopback.
    endpoint = Endpoint(f"http://127.0.0.1:{server.port}/ice/v1", plain=True, loopback=False)
    credentials = ("DPoP a..c.d.e", "e30.e30.x")
    connecting = Connector(endpoint, None, lambda: credentials, now=lambda: NOW, waits=Waits())
    async with connecting as connector:
        socket = await connector.connect()
        await socket.close()

    sent = gateway.handshakes[0].headers
    assert (sent["Authorization"], sent["DPoP"]) == credentials, "aiohttp would send Basic, or fail"


async def test_loopback_is_never_reached_through_a_proxy(run, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    assert await run() is None, "a proxy between us and our own machine would get a plain token"
