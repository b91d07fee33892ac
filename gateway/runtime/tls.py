"""The listener's certificate and key, which can be renewed while connections live on."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from gateway.runtime.settings import BadSetting, Settings


class Tls:
    """What the listener shows to those who connect.

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
        # Asked at every handshake, with or without a name (SNI). The listener's own context is never
        # written to: a pair that turns out bad half way would have been loaded by half.
        self.context.sni_callback = self._show

    @classmethod
    def of(cls, settings: Settings) -> Tls | None:
        """What the settings name, if anything. Raises `BadSetting`."""
        certificate, key = settings.server_tls_certificate, settings.server_tls_key
        if certificate is None and key is None:
            return None
        if certificate is None or key is None:
            missing = "server.tls_certificate" if certificate is None else "server.tls_key"
            raise BadSetting(f"{missing} is missing: TLS needs both certificate and key")
        return cls(certificate, key)

    def renew(self) -> None:
        """Read both files again, for the handshakes to come. Raises `BadSetting`; the old pair stays then."""
        self._current = self._read()

    def _show(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _read(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self._certificate, self._key, self._no_passphrase)
        except (OSError, ssl.SSLError) as error:
            raise BadSetting(
                f"server.tls_certificate {self._certificate} with server.tls_key {self._key} cannot be"
                f" used: {error.strerror or error}"
            ) from error
        # An ICE connects rarely and stays: two tickets for a resumption that never comes would be a
        # quarter of a handshake's CPU (RFC 8446 section 4.6.1 leaves it to the server).
        context.num_tickets = 0
        return context

    def _no_passphrase(self) -> str:
        # OpenSSL would ask on the terminal, where a service has none, and wait.
        raise BadSetting(
            f"server.tls_key {self._key} has a passphrase, which nobody could type at each start:"
            " write the key without one (openssl pkey -in OLD -out NEW), readable by the gateway alone"
        )
