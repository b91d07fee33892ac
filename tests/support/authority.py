"""A certificate authority for tests."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOUR = timedelta(hours=1)
_LONG = timedelta(days=365)
"""Longer than any trial lasts."""


class Authority:
    """Signs certificates; `file` holds its own, to be trusted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named("Test CA")
        usage = x509.BasicConstraints(ca=True, path_length=0)
        signed = self._sign(self._name, self._key, (usage, True), timedelta(), _LONG)
        self.file = self._write("ca.pem", signed)

    def trust(self) -> ssl.SSLContext:
        """The TLS of a client that trusts this authority alone."""
        return ssl.create_default_context(cafile=self.file)

    def certificate(
        self,
        host: str,
        begins: timedelta = timedelta(),
        name: str = "server",
        good_for: timedelta = HOUR,
    ) -> tuple[Path, Path]:
        """The files of a certificate for a name or IP address, good from now + `begins` on, and its key.

        The files begin with `name`; those that are there are written over.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            subject = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            subject = x509.DNSName(host)
        extension = (x509.SubjectAlternativeName([subject]), False)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        signed = self._sign(_named("server"), key, extension, begins, good_for)
        return self._write(f"{name}.pem", signed), self._write(f"{name}.key", pem)

    def server_context(self, host: str, begins: timedelta = timedelta()) -> ssl.SSLContext:
        """The TLS of a server with such a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.certificate(host, begins))
        return context

    def _sign(self, name, key, extension, begins, good_for=HOUR) -> bytes:
        start = datetime.now(UTC) - timedelta(minutes=1) + begins
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + good_for)
            .add_extension(extension[0], critical=extension[1])
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def _write(self, name: str, data: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(data)
        return path


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
