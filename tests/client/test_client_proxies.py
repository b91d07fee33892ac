"""The way through a proxy: HTTPS_PROXY and NO_PROXY hold, and a proxy's faults are told as such."""

import socket
from base64 import b64encode

import pytest

from client.agent import IceClient
from client.environment import Environment
from client.proxies import BadProxy, Proxy, proxy_for
from gateway.core.ice import IceType
from tests.support.authority import Authority
from tests.support.connect_proxy import connect_proxy
from tests.support.harness import ADMIN, harness

URL = "https://gateway.test"
"""A name that only the proxy can resolve."""
VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def _without_the_proxy_of_this_machine(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# --- through a real one ------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
async def gateway(tmp_path, authority):  # in place of the scripted one
    """A real gateway with TLS, which has a token for an ICE."""
    certificate, key = authority.certificate("gateway.test")
    options = {"public_url": URL, "tls_certificate": str(certificate), "tls_key": str(key)}
    options = {f"server__{name}": value for name, value in options.items()}
    async with harness(tmp_path, **options) as running:
        made = await running.gateway.services.provisioning.provision(
            ADMIN, "build-1", IceType.CI_CD, None
        )
        running.token = made.token.reveal()
        running.port = int(running.url.rpartition(":")[2])
        yield running


@pytest.fixture
async def proxy(gateway):
    async with connect_proxy() as started:
        started.routes["gateway.test:443"] = gateway.port
        yield started


@pytest.fixture
def ice(gateway, authority, tmp_path):
    """A client of the gateway, which does before every retry what `before_retry` says; `told` are its lines."""

    def make(before_retry=lambda: None):
        async def sleep(seconds):
            before_retry()

        told = []
        client = IceClient(
            URL,
            state_dir=tmp_path / "ice",
            token=gateway.token,
            ca_file=authority.file,
            observe=lambda event: told.append(str(event)),
            environment=Environment(sleep=sleep),
        )
        client.told = told
        return client

    return make


async def test_the_command_goes_through_the_proxy_in_a_tunnel(
    gateway, proxy, fork, authority, tmp_path
):
    proxy.credentials = "ada:se cret"
    ended = await fork.run(
        *("run", "--gateway", URL, "--ca-file", authority.file, "--state-dir", tmp_path / "ice"),
        *("--token-file", "-"),
        stdin=gateway.token,
        environ={"HTTPS_PROXY": f"http://ada:se%20cret@{proxy.address}"},
        until_admitted=True,
    )

    assert (ended.status, ended.err) == (0, ""), ended
    assert "admitted as build-1 (ci-cd)" in ended.out
    assert proxy.asked == ["gateway.test:443"], "one tunnel should have been asked for"
    assert proxy.seen, "the connection should have gone through it"
    assert gateway.token.encode() not in proxy.seen, "TLS should hide the token from the proxy"
    assert b"DPoP" not in proxy.seen


async def test_no_proxy_passes_it_by(gateway, proxy, ice, monkeypatch):
    asked = []

    def getaddrinfo(host, port, *_, **__):
        asked.append(host)
        address = ("127.0.0.1", gateway.port)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
    monkeypatch.setenv("NO_PROXY", "other.example, .test")
    async with ice() as client:
        await client.connected()

    assert "gateway.test" in asked
    assert proxy.asked == [], "NO_PROXY names the gateway's domain"


@pytest.mark.parametrize("given", ["", "ada:wrong@"])
async def test_a_proxy_that_asks_for_a_password_is_told_about_and_tried_again(
    given, proxy, ice, monkeypatch
):
    proxy.credentials = "ada:secret"
    monkeypatch.setenv("HTTPS_PROXY", f"http://{given}{proxy.address}")

    def set_right():
        monkeypatch.setenv("HTTPS_PROXY", f"http://ada:secret@{proxy.address}")

    async with ice(before_retry=set_right) as client:
        await client.connected()

    line, _, wait = client.told[1].partition(" (trying again in ")
    assert line == (
        f"proxy-refused: The proxy http://{proxy.address} requires a user and a password (HTTP"
        " 407): set HTTPS_PROXY to http://user:password@host:port."
    )
    assert wait.endswith(" s)"), "it should be tried again"
    assert "wrong" not in "".join(client.told)


FORBIDDEN = (
    "proxy-refused: The proxy {} did not connect to gateway.test (HTTP 403): ask its operator, or"
    " name the gateway in NO_PROXY if this machine can reach it directly."
)
CLOSED = (
    "unreachable: The connection to gateway.test was closed before there was an answer. (through the"
    " proxy {})"
)
NO_GATEWAY = "unreachable: The server at gateway.test is not a gateway: check the address. (through the proxy {})"


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", FORBIDDEN),
        (b"", CLOSED),
        (b"HTTP/1.1 200 OK\r\n\r\n", CLOSED),
        (b"SSH-2.0-OpenSSH\r\n", NO_GATEWAY),
    ],
    ids=["forbids", "hangs-up", "hangs-up-later", "no-http"],
)
async def test_a_proxy_that_makes_no_tunnel_is_named(answer, line, proxy, ice, monkeypatch):
    proxy.answer = answer
    monkeypatch.setenv("HTTPS_PROXY", f"http://ada:secret@{proxy.address}")
    async with ice(before_retry=lambda: setattr(proxy, "answer", None)) as client:
        await client.connected()

    assert client.told[1].startswith(line.format(f"http://{proxy.address}")), client.told[1]
    assert "secret" not in "".join(client.told)


async def test_a_proxy_that_is_not_there_is_named(ice, monkeypatch, unused_tcp_port, proxy):
    monkeypatch.setenv("HTTPS_PROXY", f"http://ada:secret@127.0.0.1:{unused_tcp_port}")

    def start():
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")

    async with ice(before_retry=start) as client:
        await client.connected()

    assert client.told[1].startswith(
        f"proxy-unreachable: Connection refused by the proxy http://127.0.0.1:{unused_tcp_port}: it is not"
        " running, or the address is wrong. (trying again in "
    )
    assert "secret" not in "".join(client.told)


async def test_names_that_cannot_be_resolved_are_told_apart(ice, monkeypatch):
    def getaddrinfo(host, *_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    retries = []

    def retry():
        retries.append(None)
        monkeypatch.setenv("HTTPS_PROXY", "px.test:3128")
        if len(retries) == 2:
            client.stop()

    async with ice(before_retry=retry) as client:
        await client.wait()

    first, second = (line.partition(" (trying")[0] for line in (client.told[1], client.told[3]))
    assert first == (
        "unreachable: Cannot resolve gateway.test: check the name and this machine's network."
    )
    assert second == (
        "proxy-unreachable: Cannot resolve the proxy http://px.test:3128: check the name and"
        " this machine's network."
    )


async def test_a_proxy_that_cannot_be_used_is_not_passed_by(ice, proxy, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "socks5://ada:secret@127.0.0.1:1080")

    def set_right():
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")

    async with ice(before_retry=set_right) as client:
        await client.connected()

    assert client.told[1].startswith(
        "proxy-unusable: HTTPS_PROXY names a socks5 proxy: only http proxies are supported (trying"
    )


# --- which one ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url", "auth"),
    [
        ("http://px.example:3128", "http://px.example:3128", None),
        ("http://px.example:3128/", "http://px.example:3128", None),
        ("px.example:3128", "http://px.example:3128", None),
        ("px.example", "http://px.example:80", None),
        ("http://[2001:db8::1]:3128", "http://[2001:db8::1]:3128", None),
        ("http://ada:s%40e@px.example:3128", "http://px.example:3128", b"ada:s@e"),
        ("ada@px.example:3128", "http://px.example:3128", b"ada:"),
    ],
)
def test_a_proxy_is_read_from_its_setting(text, url, auth):
    proxy = Proxy.of(text, "HTTPS_PROXY")

    assert proxy.url == url
    assert proxy.authorization == (auth and f"Basic {b64encode(auth).decode()}")
    assert (proxy.authorization or "Basic") not in repr(proxy)


@pytest.mark.parametrize(
    "text",
    [
        *("http://", "http://:3128", "http://px.example:port", "http://px.example:99999"),
        *("http://ada:secret@[::1", "http://ada:secret@px example", "ada:secret@px\r\nX: y"),
        *(
            "http://a%3Ada:secret@px.example",
            "https://ada:secret@px.example",
            "socks5://ada:secret@px",
        ),
    ],
)
def test_a_setting_that_is_no_proxy_is_told_in_one_line(text):
    with pytest.raises(BadProxy, match=r"^HTTPS_PROXY ") as caught:
        Proxy.of(text, "HTTPS_PROXY")

    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "url", "through"),
    [
        ({}, "https://gw.example/ice/v1", None),
        ({"HTTPS_PROXY": "http://px:1"}, "https://gw.example/ice/v1", "http://px:1"),
        ({"https_proxy": "http://px:1"}, "https://gw.example/ice/v1", "http://px:1"),
        ({"HTTP_PROXY": "http://px:1"}, "https://gw.example/ice/v1", None),
        ({"HTTP_PROXY": "http://px:1"}, "http://gw.example/ice/v1", "http://px:1"),
        ({"HTTPS_PROXY": ""}, "https://gw.example/ice/v1", None),
    ],
)
def test_the_proxy_is_that_of_the_urls_scheme(environ, url, through, monkeypatch):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    proxy = proxy_for(url)

    assert (proxy and proxy.url) == through


@pytest.mark.parametrize(
    ("no_proxy", "passed_by"),
    [
        ("gw.example", True),
        ("GW.Example", True),
        ("gw.example.", True),
        ("example", True),
        (".example", True),
        ("*.example", True),
        (".gw.example", True),
        ("other.org, gw.example", True),
        ("other.org gw.example", True),
        ("other.org\t, \n gw.example ,", True),
        ("gw.example:8440", True),
        (".example:8440", True),
        ("*.example:8440", True),
        ("*", True),
        ("other.org *", True),
        ("*:8440", True),
        ("gw.example:443", False),
        (".example:443", False),
        ("*:443", False),
        ("gw.example:", False),
        ("gw.example:x", False),
        ("gw.example:84400", False),
        ("w.example", False),
        ("*w.example", False),
        ("sub.gw.example", False),
        ("10.0.0.0/8", False),
        ("::/0", False),
        (".", False),
        (", ,", False),
        ("[", False),
        ("", False),
    ],
)
def test_no_proxy_names_hosts_and_domains(no_proxy, passed_by, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://px:1")
    monkeypatch.setenv("NO_PROXY", no_proxy)

    assert (proxy_for("https://gw.example:8440/ice/v1") is None) is passed_by


@pytest.mark.parametrize(
    ("host", "no_proxy", "passed_by"),
    [
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3:443", True),
        ("10.1.2.3", "10.1.2.3:8440", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.9.9.9/8", True),
        ("10.1.2.3", "10.0.0.0/255.0.0.0", True),
        ("10.1.2.3", "192.0.2.0/24 10.1.0.0/16", True),
        ("10.1.2.3", "0.0.0.0/0", True),
        ("10.1.2.3", "10.2.0.0/16", False),
        ("10.1.2.3", "10.0.0.0/8:443", True),
        ("10.1.2.3", "10.0.0.0/8:80", False),
        ("10.1.2.3", "10.0.0.0/33", False),
        ("10.1.2.3", "2.3", False),
        ("10.1.2.3", "::/0", False),
        ("10.1.2.3", "::ffff:10.1.2.3", True),
        ("[2001:db8::1]", "2001:db8::1", True),
        ("[2001:db8::1]", "[2001:db8::1]", True),
        ("[2001:db8::1]", "2001:0DB8:0:0::1", True),
        ("[2001:db8::1]", "[2001:db8::1]:443", True),
        ("[2001:db8::1]", "[2001:db8::1]:8440", False),
        ("[2001:db8::1]", "2001:db8::/32", True),
        ("[2001:db8::1]", "[2001:db8::]/32", True),
        ("[2001:db8::1]", "[2001:db8::]/32:8440", False),
        ("[2001:db8::1]", "2001:db9::/32", False),
        ("[2001:db8::1]", "2001:db8::2", False),
        ("[2001:db8::1]", "0.0.0.0/0", False),
        ("[::ffff:10.1.2.3]", "10.0.0.0/8", True),
        ("[fe80::1%25eth0]", "fe80::/10", True),
    ],
)
def test_no_proxy_names_addresses_and_networks(host, no_proxy, passed_by, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://px:1")
    monkeypatch.setenv("NO_PROXY", no_proxy)

    assert (proxy_for(f"https://{host}/ice/v1") is None) is passed_by


def test_where_the_system_names_the_proxy_the_system_says_what_passes_it_by(monkeypatch):
    """macOS and Windows; `NO_PROXY` counts beside `HTTPS_PROXY` alone."""
    asked = []
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://px:1"})
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: asked.append(host) or True)

    assert proxy_for("https://gw.example:8440/ice/v1") is None
    assert asked == ["gw.example:8440"]
