"""The ICEs of a measurement: their entries in a database, their tokens, keys and proofs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import shutil
import time
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from gateway.cli.common import open_context
from gateway.core.ice import IceType
from gateway.core.roles import Role
from gateway.runtime.setting_sources import load
from tests.support.ice import Ice, Key

_ECDSA = ec.ECDSA(hashes.SHA256())
_AT_ONCE = 512


def name_of(number: int) -> str:
    """As the load generator writes `{i}`."""
    return f"bench-{number:06}"


def database_in(folder: Path) -> str:
    """The URL of the database in a folder."""
    return f"sqlite:///{folder}/ice.db"


def copied(folder: Path, to: Path) -> Path:
    """Copy database and keys as they are now, over what is there; nobody may have them open."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(folder, to))


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class _Key:
    """A key pair and the two parts of a proof that are always the same."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        numbers = self.private.public_key().public_numbers()
        x, y = (_b64(number.to_bytes(32)) for number in (numbers.x, numbers.y))
        jwk = {"kty": "EC", "crv": "P-256", "x": x, "y": y}
        head = json.dumps({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk})
        self._head = _b64(head.encode())

    def proof(self, url: str, token: str) -> str:
        claims = {
            "jti": secrets.token_urlsafe(16),
            "htm": "GET",
            "htu": url,
            "iat": time.time(),
            "ath": _b64(hashlib.sha256(token.encode()).digest()),
        }
        signed = f"{self._head}.{_b64(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self.private.sign(signed.encode(), _ECDSA))
        return f"{signed}.{_b64(r.to_bytes(32) + s.to_bytes(32))}"


class Fleet:
    """`size` ICEs that are provisioned in the database of `folder`, and one API token of an admin."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.size = size
        self.api_token = ""
        self._tokens: list[str] = []
        self._keys: list[_Key] = []

    async def provision(self, others: int = 0) -> None:
        """Make the database. `others` more entries belong to ICEs that never come."""
        self.folder.mkdir(exist_ok=True)
        settings = load(None, {}, {"database.url": database_in(self.folder)})
        async with open_context(settings) as opened:
            await opened.services.accounts.add_user(opened.actor, "admin", Role.ADMIN, None)
            made = await opened.services.accounts.create_token(
                opened.actor, "admin", "bench", 0, may_change_accounts=True
            )
            self.api_token = made.secret.reveal()
            for first in range(0, self.size + others, _AT_ONCE):
                numbers = range(first, min(first + _AT_ONCE, self.size + others))
                issued = await asyncio.gather(
                    *(
                        opened.services.provisioning.provision(
                            opened.actor, name_of(number), IceType.CI_CD, None
                        )
                        for number in numbers
                    )
                )
                self._tokens += [one.token.reveal() for one in issued]
        del self._tokens[self.size :]
        self._keys = [_Key() for _ in range(self.size)]

    def ice(self, url: str, number: int) -> Ice:
        """One of them, as a client."""
        return Ice(url, self._tokens[number], Key(self._keys[number].private))

    def handshake(self, number: int, url: str) -> tuple[str, str]:
        """One's token, and a proof that is good for a minute."""
        token = self._tokens[number]
        return token, self._keys[number].proof(url, token)

    def write_headers(self, path: Path, url: str, first: int, count: int, rounds: int) -> None:
        """Headers for `rounds` handshakes of each of `count` ICEs from `first` on, a line each.

        They are good for a minute.
        """
        with path.open("w") as file:
            for _ in range(rounds):
                for number in range(first, first + count):
                    token, proof = self.handshake(number, url)
                    file.write(
                        f"Sec-WebSocket-Protocol: ice.v1\tAuthorization: DPoP {token}\tDPoP: {proof}\n"
                    )
