"""The listener's certificate and key, which can be renewed without closing connections."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

import structlog

from gateway.runtime.settings import BadSetting, Settings

_log = structlog.get_logger()


class Tls:
    """The certificate that the listener presents to clients.

    Args:
        certificate: PEM file with the whole chain.
        key: PEM file with its private key, without a passphrase.

    Raises:
        BadSetting: they cannot be used; the text says why.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._current = self._read()
        self.context: Final = self._current
        """For the listener, for its whole life."""
        # Called at every handshake, with or without SNI. A new pair is never loaded into this
        # context: a pair that fails half way would leave it half replaced.
        self.context.sni_callback = self._present

    @classmethod
    def from_settings(cls, settings: Settings) -> Tls | None:
        """The certificate that the settings name; None if they name none. Raises `BadSetting`."""
        certificate, key = settings.server_tls_certificate, settings.server_tls_key
        if certificate is None and key is None:
            return None
        if certificate is None or key is None:
            missing = "server.tls_certificate" if certificate is None else "server.tls_key"
            raise BadSetting(f"{missing} is missing: TLS needs both certificate and key")
        return cls(certificate, key)

    def renew(self) -> None:
        """Read both files again, for later handshakes. Raises `BadSetting` and then keeps the old pair."""
        self._current = self._read()

    def _present(
        self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        connection.context = self._current

    def _read(self) -> ssl.SSLContext:
        _check_readable("server.tls_certificate", self._certificate)
        _check_readable("server.tls_key", self._key)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self._certificate, self._key, self._no_passphrase)
        except (OSError, ssl.SSLError) as error:
            raise BadSetting(
                f"server.tls_certificate {self._certificate} with server.tls_key {self._key} cannot be"
                f" used: {error.strerror or error}"
            ) from error
        # An ICE connects rarely and stays connected, so it never resumes a TLS session: two tickets
        # would cost a quarter of a handshake's CPU (RFC 8446 section 4.6.1 makes them optional).
        context.num_tickets = 0
        return context

    def _no_passphrase(self) -> str:
        # Without this OpenSSL would prompt on the terminal and wait; a service has no terminal.
        raise BadSetting(
            f"server.tls_key {self._key} has a passphrase, which a service cannot enter at its start:"
            " write the key without one (openssl pkey -in OLD -out NEW), readable only by the gateway"
        )


def _check_readable(setting: str, path: Path) -> None:
    """Raise `BadSetting` if the file cannot be read: OpenSSL would not say which of the two it is."""
    try:
        path.open("rb").close()
    except OSError as error:
        text = f"{setting} {path} cannot be read: {error.strerror}"
        if isinstance(error, PermissionError):
            text += "; let the gateway's user read it, such as by its group and mode 640"
        raise BadSetting(text) from error


def reload_certificate(tls: Tls | None) -> None:
    """Renew the certificate and log the outcome; keep the old one if the new one cannot be used."""
    if tls is None:
        _log.info("nothing to read again: this gateway speaks no TLS")
        return
    try:
        tls.renew()
    except BadSetting as error:
        _log.error("the certificate is not renewed, the old one stays", reason=str(error))
    else:
        _log.info("the certificate is renewed")
