"""TLS is verified, by the system's certificates and those of `--ca-file`."""

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from scripted_gateway import ScriptedGateway


class Authority:
    """A certificate authority made for one test."""

    def __init__(self, folder):
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
        usage = x509.BasicConstraints(ca=True, path_length=0)
        self.file = self._write("ca.pem", self._sign(self._name, self._key, (usage, True)))

    def server_context(self, address):
        """The TLS of a server whose certificate names this IP address."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        certificate = self._sign(name, key, (names, False))
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._write("server.pem", certificate + pem))
        return context

    def _sign(self, name, key, extension):
        now = datetime.now(UTC)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(extension[0], critical=extension[1])
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def _write(self, name, data):
        path = self._folder / name
        path.write_bytes(data)
        return path


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
async def serve(aiohttp_server, authority):
    async def serve(address="127.0.0.1"):
        gateway = ScriptedGateway()
        server = await aiohttp_server(gateway.app(), ssl=authority.server_context(address))
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
    assert "--ca-file" in str(events[1]), "the line should say what to do"
    assert "certificate" in str(events[1])


async def test_a_certificate_for_another_host_is_not_trusted(serve, make_ice, authority, time):
    gateway = await serve("192.0.2.1")
    async with make_ice(gateway_url=gateway.url, ca_file=authority.file):
        await time.after_sleeps(1)

    assert gateway.handshakes == []
