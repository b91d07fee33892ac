"""What the listener's TLS does for ICEs, which come rarely and stay."""

from __future__ import annotations

import errno
import os
import ssl
from pathlib import Path

import pytest

from gateway.runtime.settings import BadSetting
from gateway.runtime.tls import Tls
from tests.support.authority import Authority


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def after_the_handshake(client_context, server_context):
    """What a server sends on its own account once a TLS 1.3 handshake is done, in bytes."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert (client.version(), server.version()) == ("TLSv1.3", "TLSv1.3")
    return len(to_client.read())


@pytest.mark.parametrize("renewed", [False, True])
def test_nobody_is_given_tickets_that_nobody_uses(authority, renewed):
    tls = Tls(*authority.certificate("127.0.0.1"))
    if renewed:
        authority.certificate("127.0.0.1")
        tls.renew()
    assert after_the_handshake(authority.trust(), tls.context) == 0
    with_tickets = authority.server_context("127.0.0.1")
    assert after_the_handshake(authority.trust(), with_tickets) > 0, "the test must see tickets"


def test_a_key_that_the_gateway_must_not_read_is_named_with_the_remedy(authority, monkeypatch):
    """As root nothing is refused, so this stands in for the system's answer."""
    certificate, key = authority.certificate("127.0.0.1")
    opened = Path.open

    def refuse(path, *args):
        if path == key:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *args)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadSetting) as caught:
        Tls(certificate, key)
    assert str(caught.value).startswith(f"server.tls_key {key} cannot be read: Permission denied; ")
    assert "mode 640" in str(caught.value)
