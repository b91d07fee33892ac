"""What an abuser does to a gateway: one function a scenario, started by `tests.torture.abuse`.

Each counts what it has tried and what became of it. What it needs (the gateway's URL, tokens, a
login) comes as JSON on stdin, what it has seen goes as JSON to stdout.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import re
import secrets
import shutil
import socket
import ssl
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from websockets.frames import Frame, Opcode

from tests.support.ice import Connection, Ice, Refused, b64_json

API = "/admin/api/v1"
ANSWER = re.compile(rb"HTTP/1\.[01] (\d{3})[^\r]*\r\n(.*?)\r\n\r\n", re.DOTALL)
CODE = re.compile(rb'"code":"([a-z-]+)"')


@dataclass
class Stock:
    """What the abuser was given."""

    url: str
    seconds: float
    api_token: str
    cookie: str
    tokens: list[str]
    """Genuine registration tokens, each of another ICE: the rogues'."""

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port


class Seen(Counter[str]):
    """How often what was tried ended how."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts = 0


def status_of(answer: bytes) -> str:
    found = ANSWER.match(answer)
    if found is None:
        return "cut off"
    code = CODE.search(answer)
    return found[1].decode() + (f" {code[1].decode()}" if code else "")


async def dial(
    stock: Stock, source: str | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = stock.address
    local = None if source is None else (source, 0)
    return await asyncio.open_connection(host, port, local_addr=local, limit=2**20)


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    """One answer with its body; empty at the end of the stream."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return head + (await reader.readexactly(int(length[1])) if length else b"")


async def ask(stock: Stock, data: bytes, source: str | None = None) -> str:
    """Send `data` on a connection of its own; what the answer was."""
    writer = None
    try:
        reader, writer = await dial(stock, source)
        writer.write(data)
        async with asyncio.timeout(30):
            return status_of(await answer_of(reader))
    except TimeoutError:
        return "no answer"
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return "cut off"
    finally:
        if writer is not None:
            writer.close()


def http(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    fields = {"Host": "gateway.example", **{k.replace("_", "-"): v for k, v in headers.items()}}
    if method == "POST":
        fields["Content-Length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape") + body


def login(name: str, password: str, **headers: str) -> bytes:
    return http(
        "POST",
        "/admin/login",
        urlencode({"name": name, "password": password}).encode(),
        Origin="http://gateway.example",
        Content_Type="application/x-www-form-urlencoded",
        **headers,
    )


async def at_once(works: Iterator[Awaitable[None]], workers: int) -> None:
    """Do all the works, so many at a time."""

    async def worker() -> None:
        for work in works:
            await work

    await asyncio.gather(*(worker() for _ in range(workers)))


# --- slow senders, slow readers --------------------------------------------------------------------


async def slowhttptest(stock: Stock, seen: Seen, name: str, path: str, *options: str) -> None:
    """Debian's slowhttptest with 1,000 connections."""
    process = await asyncio.create_subprocess_exec(
        *("slowhttptest", "-c", "1000", "-r", "250", "-l", str(round(stock.seconds))),
        *("-u", stock.url + path, "-p", "3", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", said.decode(errors="replace"))
    seen.attempts += 1000
    ended = re.search(r"Exit status:\s*(.*)", text)
    seconds = re.search(r"Test ended on (\d+)", text)
    seen[
        f"{name}: {ended[1].strip() if ended else text.strip()} after {seconds[1] if seconds else '?'} s"
    ] += 1


async def slow_senders(stock: Stock, seen: Seen) -> None:
    """Headers and bodies that never end."""
    bearer = f"application/json\r\nAuthorization: Bearer {stock.api_token}"
    await asyncio.gather(
        slowhttptest(stock, seen, "-H /ice/v1", "/ice/v1", "-H", "-i", "2"),
        slowhttptest(
            *(stock, seen, "-B login", "/admin/login", "-B", "-i", "2", "-s", "8192"),
            *("-m", f"*/*\r\nOrigin: {stock.url}"),
        ),
        slowhttptest(
            *(stock, seen, "-B API", f"{API}/ices", "-B", "-i", "2", "-s", "8192", "-f", bearer),
        ),
    )


async def slow_readers(stock: Stock, seen: Seen) -> None:
    """Big answers asked for again and again and hardly read; ranges; event streams."""
    read = ("-X", "-w", "256", "-y", "512", "-n", "2", "-z", "32", "-k", "10")
    cookie = ("-j", f"ice_login={stock.cookie}")
    listing = f"{API}/ices?limit=200"
    await asyncio.gather(
        slowhttptest(stock, seen, "-R page", "/admin/login", "-R"),
        slowhttptest(stock, seen, "-X listing", listing, *read, *cookie),
        slowhttptest(stock, seen, "-X description", f"{API}/openapi.json", *read),
        slowhttptest(stock, seen, "-X events", f"{API}/events/stream", *read, *cookie),
        hardly_read(stock, seen),
    )


async def hardly_read(stock: Stock, seen: Seen) -> None:
    """More than the kernel takes for them, which slowhttptest does not ask for."""
    until = time.monotonic() + stock.seconds
    loop = asyncio.get_running_loop()
    request = http("GET", f"{API}/openapi.json") * 200

    async def one() -> None:
        seen.attempts += 1
        with socket.socket() as link, contextlib.suppress(OSError):
            link.setblocking(False)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            await loop.sock_connect(link, stock.address)
            await loop.sock_sendall(link, request)
            while await loop.sock_recv(link, 32) and time.monotonic() < until:  # noqa: ASYNC110 - slowly
                await asyncio.sleep(2)

    await asyncio.gather(*(one() for _ in range(200)))


# --- garbage ---------------------------------------------------------------------------------------


def client_hello() -> bytes:
    """What a TLS client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(
            incoming, outgoing, server_hostname="x"
        ).do_handshake()
    return outgoing.read()


def garbage_makers(stock: Stock) -> dict[str, Callable[[], bytes]]:
    genuine = Ice(stock.url, stock.tokens[0])
    sealed_by = genuine.token.split(".")[0]
    hello = client_hello()
    proof = genuine.key.proof(genuine.htu, genuine.token)
    head, claims, signature = proof.split(".")

    def with_token(token: str) -> bytes:
        return genuine.request({"Authorization": f"DPoP {token}", "DPoP": proof})

    def with_proof(text: str) -> bytes:
        return genuine.request({"DPoP": text})

    def random_text(length: int) -> str:
        return base64.urlsafe_b64encode(os.urandom(length)).decode().rstrip("=")

    def sealed() -> bytes:
        parts = (sealed_by, "", random_text(12), random_text(120), random_text(16))
        return with_token(".".join(parts))

    def unknown_key() -> bytes:
        header = b64_json({"alg": "dir", "enc": "A256GCM", "kid": random_text(8), "iat": 0})
        return with_token(f"{header}..{random_text(12)}.{random_text(90)}.{random_text(16)}")

    def jwk(**members: object) -> bytes:
        header = b64_json({"typ": "dpop+jwt", "alg": "ES256", "jwk": members})
        return with_proof(f"{header}.{claims}.{signature}")

    def truncated() -> bytes:
        whole = genuine.request({"DPoP": proof})
        return whole[: random.randrange(len(whole))]

    return {
        "random bytes": lambda: os.urandom(random.randrange(1, 2000)),
        "random lines": lambda: os.urandom(300).replace(b"\n", b"\r\n") + b"\r\n\r\n",
        "truncated": truncated,
        "TLS hello": lambda: hello,
        "HTTP/2": lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(50),
        "garbage token": lambda: with_token(random_text(200)),
        "sealed garbage": sealed,
        "unknown key": unknown_key,
        "huge token": lambda: with_token("x" * 30_000),
        "too huge token": lambda: with_token("x" * 100_000),
        "garbage proof": lambda: with_proof(random_text(400)),
        "bad signature": lambda: with_proof(f"{head}.{claims}.{random_text(64)}"),
        "bad key": lambda: jwk(kty="EC", crv="P-256", x=random_text(32), y=random_text(32)),
        "odd key": lambda: jwk(kty="\x1b[31m\n", crv="x" * 1000, x=[[]]),
        "deep key": lambda: with_proof(
            base64.urlsafe_b64encode(b'{"jwk":' + b"[" * 2000).decode() + f".{claims}.{signature}"
        ),
        "bad websocket key": lambda: genuine.request(
            {"DPoP": proof, "Sec-WebSocket-Key": random_text(20)}
        ),
        "many headers": lambda: genuine.request(
            {"DPoP": proof, **{f"X-{number}": "x" for number in range(1000)}}
        ),
        "many proofs": lambda: genuine.request({"DPoP": [proof] * 50}),
        "no token": lambda: genuine.request({"Authorization": None, "DPoP": None}),
    }


async def garbage(stock: Stock, seen: Seen) -> None:
    """Handshakes that are none, each on its own connection, and many behind one another on one."""
    makers = garbage_makers(stock)
    until = time.monotonic() + stock.seconds

    def singles() -> Iterator[Awaitable[None]]:
        while time.monotonic() < until:
            for name, make in makers.items():
                yield one(name, make)

    async def one(name: str, make: Callable[[], bytes]) -> None:
        seen.attempts += 1
        if name in ("truncated", "random bytes"):  # which may wait for more: gone at once
            with contextlib.suppress(OSError):
                _, writer = await dial(stock)
                writer.write(make())
                writer.close()
            seen["gone at once"] += 1
            return
        seen[await ask(stock, make())] += 1

    async def pipelined() -> None:
        """100 refused handshakes on one connection, again and again."""
        one = makers["garbage token"]()
        while time.monotonic() < until:
            seen.attempts += 100
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await dial(stock)
                writer.write(one * 100)
                for _ in range(100):
                    seen[f"pipelined {status_of(await answer_of(reader))}"] += 1
                writer.close()

    await asyncio.gather(at_once(singles(), 200), pipelined(), pipelined())


# --- guessing --------------------------------------------------------------------------------------


async def guess_logins(stock: Stock, seen: Seen) -> None:
    """One address, which is held off; then so many addresses that passwords are checked all the time."""
    for number in range(100):
        seen.attempts += 1
        guess = login("admin", f"guess {number}")
        seen[f"one address: {(await ask(stock, guess, '127.0.6.6'))[:3]}"] += 1
    until = time.monotonic() + stock.seconds

    def guesses() -> Iterator[Awaitable[None]]:
        number = 0
        while time.monotonic() < until:
            number += 1
            yield guess(f"127.1.{number % 200}.1", random.choice(("admin", f"user {number}")))

    async def guess(source: str, name: str) -> None:
        seen.attempts += 1
        status = await ask(stock, login(name, secrets.token_hex()), source)
        seen[f"many addresses: {status[:3]}"] += 1

    await at_once(guesses(), 64)


async def guess_tokens(stock: Stock, seen: Seen) -> None:
    """API tokens and cookies on connections that are kept, registration tokens from many addresses."""
    until = time.monotonic() + stock.seconds
    sealed_by = stock.tokens[0].split(".")[0]

    async def keep_asking(name: str, make: Callable[[], bytes]) -> None:
        while time.monotonic() < until:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await dial(stock)
                while time.monotonic() < until:
                    writer.write(make())
                    seen.attempts += 1
                    seen[f"{name}: {status_of(await answer_of(reader))[:3]}"] += 1
                writer.close()

    def bearer() -> bytes:
        token = f"icegw_{secrets.token_urlsafe(32)}"
        return http("GET", f"{API}/ices", Authorization=f"Bearer {token}")

    def cookie() -> bytes:
        return http("GET", f"{API}/ices", Cookie=f"ice_login={secrets.token_urlsafe(32)}")

    async def registration(source: str) -> None:
        ice = Ice(stock.url, "")
        while time.monotonic() < until:
            parts = (sealed_by, "", *(secrets.token_urlsafe(size) for size in (12, 120, 16)))
            request = ice.request({"Authorization": f"DPoP {'.'.join(parts)}"})
            seen.attempts += 1
            seen[f"registration token: {(await ask(stock, request, source))[:3]}"] += 1

    await asyncio.gather(
        *(keep_asking("API token", bearer) for _ in range(16)),
        *(keep_asking("cookie", cookie) for _ in range(16)),
        *(registration(f"127.2.{number}.1") for number in range(4)),
    )


# --- rogues: genuine ICEs that misbehave -----------------------------------------------------------


def frame(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def text(**message: object) -> bytes:
    return frame(Opcode.TEXT, json.dumps({"jsonrpc": "2.0", **message}).encode())


FLOODS = {
    "pings": frame(Opcode.PING, b""),
    "pongs": frame(Opcode.PONG, b"x" * 125),
    "notifications": text(method="no.such", params={}),
    "fragments": frame(Opcode.CONT, b"", fin=False),
    "hellos": text(method="ice.hello", params={"hostname": "x" * 300}),
    "requests": text(method="no.such", id="x" * 100),
}


async def flood(stock: Stock, seen: Seen) -> None:
    """Rogues that send as fast as they can, each its own kind of frame; back again at once."""
    until = time.monotonic() + stock.seconds
    rogues = [Ice(stock.url, token) for token in stock.tokens]
    kinds = list(FLOODS)

    async def rogue(ice: Ice, kind: str) -> None:
        many = FLOODS[kind] * 100
        while time.monotonic() < until:
            connection = await admitted(ice, seen)
            if connection is None:
                continue
            # Or else the kernel would take megabytes that nobody reads.
            link = connection.writer.get_extra_info("socket")
            link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            if kind == "fragments":
                connection.writer.write(frame(Opcode.TEXT, b"[", fin=False))
            closing = asyncio.ensure_future(closed(connection))
            sent = 0
            with contextlib.suppress(OSError):
                while not closing.done() and time.monotonic() < until:
                    connection.writer.write(many)
                    sent += 100
                    await connection.writer.drain()
                    await asyncio.sleep(0)
            seen.attempts += sent
            if time.monotonic() >= until:
                connection.writer.transport.abort()
            seen[f"{kind}: {await closing}"] += 1
            await connection.close()

    await asyncio.gather(
        *(rogue(ice, kinds[number % len(kinds)]) for number, ice in enumerate(rogues))
    )


async def never_read(stock: Stock, seen: Seen) -> None:
    """Rogues that ask on and on, with long ids, and read no answer."""
    until = time.monotonic() + stock.seconds
    request = text(method="no.such", id="x" * 60_000)

    async def rogue(ice: Ice) -> None:
        while time.monotonic() < until:
            connection = await admitted(ice, seen)
            if connection is None:
                continue
            connection.writer.transport.pause_reading()
            with contextlib.suppress(OSError, TimeoutError):
                while time.monotonic() < until and not connection.writer.is_closing():
                    connection.writer.write(request)
                    seen.attempts += 1
                    async with asyncio.timeout(2):  # the gateway reads no more: it has closed
                        await connection.writer.drain()
            connection.writer.transport.abort()
            await connection.close()

    await asyncio.gather(*(rogue(Ice(stock.url, token)) for token in stock.tokens))


async def reconnect(stock: Stock, seen: Seen) -> None:
    """Genuine ICEs that connect again as soon as they are admitted: each supersedes itself."""
    until = time.monotonic() + stock.seconds

    async def rogue(ice: Ice) -> None:
        older = None
        while time.monotonic() < until:
            seen.attempts += 1
            connection = await admitted(ice, seen)
            if connection is not None:
                connection.hello(version="1", hostname="rogue")
                seen["admitted"] += 1
                older, connection = connection, older
                if connection is not None:
                    connection.writer.transport.abort()
        if older is not None:
            await older.close()

    await asyncio.gather(*(rogue(Ice(stock.url, token)) for token in stock.tokens))


async def admitted(ice: Ice, seen: Seen) -> Connection | None:
    ice.connections.clear()
    try:
        return await ice.connect()
    except Refused as refused:
        seen[f"refused: {refused.code}"] += 1
        await asyncio.sleep(0.01)
    except (OSError, TimeoutError, AssertionError):
        seen["no admission"] += 1
    return None


async def closed(connection: Connection) -> str:
    """Read until the connection ends; the code it ended with."""
    connection.answers_pings = False
    with contextlib.suppress(OSError, TimeoutError):
        while True:
            async with asyncio.timeout(10):
                data = await connection.reader.read(2**18)
            if not data:
                break
            connection.core.receive_data(data)
            connection.core.events_received()
            if connection.core.close_rcvd is not None:
                close = connection.core.close_rcvd
                return f"{close.code} {close.reason}"
    return "no close frame"


# --- spoofing and injection ------------------------------------------------------------------------

SPOOFED = "203.0.113.77"


def spoofed(number: int) -> dict[str, str]:
    address = f"203.0.113.{number % 250}" if number else SPOOFED
    return {
        "X-Forwarded-For": address,
        "Forwarded": f"for={address};host=evil.example;proto=https",
        "X-Real-IP": address,
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Prefix": "/evil",
    }


async def spoof(stock: Stock, seen: Seen) -> None:
    """Every attempt poses as another address; and an ICE comes with such headers, too."""
    for number in range(20):
        seen.attempts += 1
        request = login("somebody", "guess", **spoofed(number))
        seen[f"login: {(await ask(stock, request, '127.0.7.7'))[:3]}"] += 1
    guess = Ice(stock.url, "garbage")
    for number in range(150):
        seen.attempts += 1
        request = guess.request(spoofed(number))
        seen[f"registration token: {(await ask(stock, request, '127.0.7.8'))[:3]}"] += 1
    ice = Ice(stock.url, stock.tokens[0])
    try:
        await ice.connect(spoofed(0) | {"Host": "evil.example"})
        seen["ICE admitted"] += 1
    except Refused as refused:
        seen[f"ICE refused: {refused.code}"] += 1
    # Proofs for a host that only the headers claim.
    elsewhere = await Ice(stock.url, stock.tokens[1]).refused(
        spoofed(0) | {"Host": "evil.example"}, htu="https://evil.example/ice/v1"
    )
    seen[f"proof for another host: {elsewhere.code}"] += 1


NASTY = (
    "a\r\nb",
    'x\n{"event":"admitted","ice":"forged"}',
    "\x1b[2J\x1b[31mred\x07",
    "nul\x00nul",
    "\x9b31mC1\x85",
    "\u202ertl\u2066\u200b",
    "\u2028line\u2029",
    "=HYPERLINK(1)",
    "<script>alert(1)</script>",
    "\U000e0041tag\ufeff",
)
"""What must reach no log line, terminal or page as it is."""


async def inject(stock: Stock, seen: Seen) -> None:
    """Nasty texts in every field that may reach a log, a listing or a label."""
    ice = Ice(stock.url, stock.tokens[0])
    long = "n" * 1_000_000
    for nasty in (*NASTY, long):
        quoted = json.dumps(nasty)[1:-1]
        percent = urlencode({"": nasty})[1:8000]
        plain = re.sub(r"[\r\n\x00]", "", nasty)[:20_000]
        header = b64_json({"alg": "dir", "enc": "A256GCM", "kid": nasty[:500], "iat": 0})
        requests = {
            "path": http("GET", f"/{percent}"),
            "raw path": http("GET", f"/{plain}"),
            "query": http("GET", f"/admin/api/v1/ices?{percent}={percent}", Cookie="ice_login=x"),
            "ICE in path": http(
                *("POST", f"{API}/ices/{percent}/disconnect"),
                Authorization=f"Bearer {stock.api_token}",
            ),
            "host": http("GET", "/admin/", Host=plain, Origin=f"http://{plain}"),
            "user": login(nasty, nasty),
            "user agent": http("GET", "/nope", User_Agent=plain),
            "raw header": http("GET", "/nope", X=nasty),
            "API token": http("GET", f"{API}/ices", Authorization=f"Bearer {plain}"),
            "new user": http(
                *("POST", f"{API}/ices"),
                f'{{"ice_name":"x","ice_type":"normal","provisionedto":"{quoted}"}}'.encode(),
                Authorization=f"Bearer {stock.api_token}",
                Content_Type="application/json",
            ),
            "new ICE": http(
                *("POST", f"{API}/ices"),
                f'{{"ice_name":"{quoted}","ice_type":"ci-cd"}}'.encode(),
                Authorization=f"Bearer {stock.api_token}",
                Content_Type="application/json",
            ),
            "method": f"{plain[:1000]} / HTTP/1.1\r\n\r\n".encode("utf-8", "replace"),
            "kid": ice.request({"Authorization": f"DPoP {header}..AAAA.AAAA.AAAA"}),
            "jwk": ice.request(
                {"DPoP": ice.key.proof(ice.htu, ice.token, header={"jwk": {"kty": plain[:500]}})}
            ),
            "htu": ice.request(htu=nasty[:1000]),
            "jti": ice.request(jti=nasty[:1000], htm="POST"),
            "nonce": ice.request(nonce=nasty[:1000]),
        }
        for name, request in requests.items():
            seen.attempts += 1
            seen[f"{name}: {(await ask(stock, request))[:3]}"] += 1
    for number, nasty in enumerate((*NASTY, "h" * 200_000)):
        connection = await ice.connect()
        connection.hello(version=nasty, platform=nasty, hostname=nasty, running=[nasty])
        connection.send({"jsonrpc": "2.0", "method": nasty, "params": {}})
        await connection.request(nasty[:1000], nasty)
        reason = nasty.encode()[:120].decode(errors="ignore").encode()
        connection.send_frame(Opcode.CLOSE, struct.pack("!H", 3000 + 99 * number) + reason)
        seen.attempts += 1
        seen[f"hello and farewell: {await closed(connection)}"[:40]] += 1
        await connection.close()
    # It stays, with a nasty hello, for the listings.
    connection = await ice.connect()
    nasty = "".join(NASTY)
    connection.hello(version=nasty, platform=nasty, hostname=nasty)
    await connection.round_trip()
    sys.stdout.write("staying\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    await connection.close()


SCENARIOS: dict[str, Callable[[Stock, Seen], Awaitable[None]]] = {
    scenario.__name__.replace("_", "-"): scenario
    for scenario in (
        *(slow_senders, slow_readers, garbage, guess_logins, guess_tokens),
        *(flood, never_read, reconnect, spoof, inject),
    )
}


def missing(name: str) -> str | None:
    """What a scenario needs and this machine lacks."""
    if name.startswith("slow") and shutil.which("slowhttptest") is None:
        return "slowhttptest is missing (Debian: apt install slowhttptest)"
    return None


def main() -> None:
    os.nice(10)  # the gateway is to be short of what the abuser sends, not of this machine
    stock = Stock(**json.loads(sys.stdin.readline()))
    seen = Seen()
    began = time.monotonic()
    asyncio.run(SCENARIOS[sys.argv[1]](stock, seen))
    seconds = time.monotonic() - began
    sys.stdout.write(
        json.dumps({"attempts": seen.attempts, "seconds": seconds, "seen": dict(seen)}) + "\n"
    )


if __name__ == "__main__":
    main()
