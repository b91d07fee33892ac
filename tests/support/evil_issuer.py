"""A small OpenID Connect issuer that does what it is told, good or evil; it never asks for a password."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import hmac
import json
import secrets
import time
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

from aiohttp import web
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

CLIENT, SECRET = "ice-gateway", "the secret/of: the client"
METADATA, JWKS, TOKEN, USERINFO = (
    *("/.well-known/openid-configuration", "/jwks", "/token"),
    "/userinfo",
)
EVENT = "http://schemas.openid.net/event/backchannel-logout"


def encoded(data):
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@functools.cache
def key_of(alg, kid):
    """A key pair; to make one of RSA takes 50 ms."""
    parameters = {"kid": kid, "alg": alg, "use": "sig"}
    match alg:
        case "ES256":
            return ECKey.generate_key("P-256", parameters)
        case "EdDSA":
            return OKPKey.generate_key("Ed25519", parameters)
    return RSAKey.generate_key(2048, parameters)


def signed(claims, key, **header):
    """A token in compact form; a member of None is left out."""
    given = {"alg": key.get("alg"), "kid": key.kid, **header}
    head = {name: value for name, value in given.items() if value is not None}
    payload = json.dumps({name: value for name, value in claims.items() if value is not None})
    return signed_text(payload, key, head)


def signed_text(payload, key, head):
    """The token of a payload that need not be JSON."""
    start = ".".join(encoded(part.encode()) for part in (json.dumps(head), payload))
    # Not `serialize_compact`: it refuses evil headers, and warns of EdDSA.
    return f"{start}.{encoded(JWSRegistry.algorithms[head['alg']].sign(start.encode(), key))}"


def unsigned(claims, alg="none"):
    """A token without a signature."""
    return ".".join(encoded(json.dumps(part).encode()) for part in ({"alg": alg}, claims)) + "."


def with_public_key_as_secret(claims, key):
    """A token that is signed by HS256, with the text of the issuer's public key as the secret."""
    head = {"alg": "HS256", "kid": key.kid}
    start = ".".join(encoded(json.dumps(part).encode()) for part in (head, claims))
    mac = hmac.digest(key.as_pem(private=False), start.encode(), "sha256")
    return f"{start}.{encoded(mac)}"


class EvilIssuer:
    """An issuer on loopback.

    Attributes:
        people: what the ID token says of each subject.
        userinfo: what userinfo says of each subject.
        changed: claims of ID tokens that are other than they should be; None leaves one out.
        sign: makes the token of some claims, in place of the key.
        metadata: members of the metadata that are other than they should be; None leaves one out.
        answers: handlers in place of the proper ones, by path.
        asked: the paths of the requests.
        access: the subject of each access token.
        seen: the id and the secret of the client that last asked for tokens.
    """

    def __init__(self):
        self.people = {"a-1": {"preferred_username": "ada", "groups": ["ice-admins"]}}
        self.userinfo = {}
        self.changed = {}
        self.sign = None
        self.metadata = {}
        self.answers = {}
        self.asked = []
        self.seen = None
        self.key = key_of("ES256", "one")
        self.published = [self.key]
        self._codes = {}
        self.access = {}

    @contextlib.asynccontextmanager
    async def running(self):
        async def dispatch(request):
            self.asked.append(request.path)
            handler = self.answers.get(request.path) or getattr(
                self, f"_{request.path.rpartition('/')[2].replace('-', '_')}"
            )
            return await handler(request)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", dispatch)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    def count(self, path):
        return self.asked.count(path)

    def rotate(self, kid, alg="ES256"):
        """Sign with a new key, and publish it alone."""
        self.key = key_of(alg, kid)
        self.published = [self.key]

    # --- what a browser does -----------------------------------------------------------------------

    def authorize(self, url, subject="a-1", **changed):
        """What the issuer sends the browser back with, after `subject` has logged in there."""
        query = {name: value for name, [value] in parse_qs(urlsplit(url).query).items()}
        assert query["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(16)
        self._codes[code] = (subject, query)
        back = {"code": code, "state": query["state"], "iss": self.url} | changed
        return urlencode({name: value for name, value in back.items() if value is not None})

    def logout_token(self, *, key=None, header=None, **changed):
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": CLIENT,
            "iat": now,
            "exp": now + 120,
            "jti": secrets.token_urlsafe(8),
            "events": {EVENT: {}},
        }
        return signed(claims | changed, key or self.key, typ="logout+jwt", **(header or {}))

    # --- endpoints ---------------------------------------------------------------------------------

    async def _openid_configuration(self, _):
        document = {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": self.url + TOKEN,
            "jwks_uri": self.url + JWKS,
            "userinfo_endpoint": self.url + USERINFO,
            "scopes_supported": ["openid", "profile", "email", "groups"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
        } | self.metadata
        return web.json_response({k: v for k, v in document.items() if v is not None})

    async def _jwks(self, _):
        return web.json_response({"keys": [key.as_dict(private=False) for key in self.published]})

    async def _authorize(self, request):
        assert request.query["prompt"] == "none"
        raise web.HTTPFound(f"{request.query['redirect_uri']}?error=login_required")

    async def _token(self, request):
        form = await request.post()
        self.seen = self._client(request, form)
        if self.seen != (CLIENT, SECRET):
            return web.json_response({"error": "invalid_client"}, status=401)
        subject, query = self._codes.pop(form["code"], (None, {}))
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if (
            challenge != query.get("code_challenge")
            or form["redirect_uri"] != query["redirect_uri"]
        ):
            return web.json_response({"error": "invalid_grant"}, status=400)
        now = int(time.time())
        claims = {
            "iss": self.url,
            "sub": subject,
            "aud": CLIENT,
            "exp": now + 300,
            "iat": now,
            "nonce": query["nonce"],
            "sid": f"session of {subject}",
            **self.people.get(subject, {}),
        } | self.changed
        access = secrets.token_urlsafe(16)
        self.access[access] = subject
        token = self.sign(claims) if self.sign else signed(claims, self.key)
        return web.json_response(
            {"id_token": token, "access_token": access, "token_type": "Bearer"}
        )

    def _client(self, request, form):
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            user, _, password = base64.b64decode(value).decode().partition(":")
            return unquote_plus(user), unquote_plus(password)
        return form.get("client_id"), form.get("client_secret")

    async def _userinfo(self, request):
        subject = self.access[request.headers["Authorization"].removeprefix("Bearer ")]
        return web.json_response({"sub": subject} | self.userinfo.get(subject, {}))


# --- answers of an issuer that is broken or evil ------------------------------------------------------


async def hangs(_):
    await asyncio.Event().wait()


async def ten_megabytes(_):
    return web.Response(body=b" " * 10_000_000, content_type="application/json")


async def html(_):
    return web.Response(text="<html>Sign in</html>", content_type="text/html")


async def fails(_):
    return web.json_response({"error": "server_error"}, status=500)


async def gzip_bomb(_):
    response = web.json_response({"padding": " " * 500_000})
    response.enable_compression(web.ContentCoding.gzip, strategy=0)
    return response


async def redirects(request):
    """To a place that would be good."""
    raise web.HTTPFound(f"{request.path}?again")


async def deep_json(_):
    return web.Response(body=b"[" * 15_000 + b"]" * 15_000, content_type="application/json")
