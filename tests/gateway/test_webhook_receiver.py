"""The example of a receiver takes what the gateway signed, once, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path

import aiohttp

from gateway.core.times import utc_now
from gateway.core.webhook_secret import new_secret, signature_headers
from gateway.runtime.webhook_client import WebhookClient
from tests.support.ice import PATIENCE

PROGRAM = Path(__file__).parents[2] / "config/webhook_receiver.py"
CLIENT = WebhookClient([ip_network("127.0.0.0/8")])


@contextlib.asynccontextmanager
async def receiver(secret):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), "0"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    process.stdin.write(f"{secret.reveal()}\n".encode())
    try:
        async with asyncio.timeout(PATIENCE):
            port = (await process.stdout.readline()).decode().split()[-1]
        yield f"http://127.0.0.1:{port}", process.stdout
    finally:
        process.kill()
        await process.wait()


async def test_it_takes_what_is_signed_once_and_refuses_the_rest():
    secret, body = new_secret(), json.dumps({"type": "provision", "data": {}}).encode()
    now = utc_now()
    good = signature_headers(secret, "log-1", now, body)
    async with receiver(secret) as (url, printed):
        assert (await CLIENT.post(url, good, body)).status == 204
        assert json.loads(await printed.readline()) == json.loads(body)
        assert (await CLIENT.post(url, good, body)).status == 204
        for headers in (
            {},
            good | {"webhook-id": "log-2"},
            good | {"webhook-signature": "v1,"},
            signature_headers(new_secret(), "log-2", now, body),
            signature_headers(secret, "log-2", now - timedelta(minutes=6), body),
        ):
            assert (await CLIENT.post(url, headers, body)).status == 401
        assert (await CLIENT.post(url, good, body + b" ")).status == 401
        second = signature_headers(secret, "log-3", now, body)
        second["webhook-signature"] = f"v1,AAAA {second['webhook-signature']}"
        assert (await CLIENT.post(url, second, body)).status == 204
        assert json.loads(await printed.readline()) == json.loads(body), "the copy was not printed"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            assert answer.status == 501
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST / HTTP/1.0\r\nContent-Length: 1e9\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"411"
        writer.close()
