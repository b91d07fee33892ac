"""Receives webhooks of an ICE gateway: python webhook_receiver.py PORT < SECRET-FILE. See docs/webhooks.md.

It listens on loopback: put a proxy with TLS before it. It needs nothing but Python.
"""

import base64
import hmac
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_BODY, MAX_AGE, MAX_SEEN = 4 * 2**20, 300, 10_000
KEY = base64.b64decode(sys.stdin.readline().strip().removeprefix("whsec_"))
SEEN: dict[str, None] = {}  # a service keeps these ids with its data, so that it does nothing twice


class Receiver(BaseHTTPRequestHandler):
    """Answers 204 to a message that the gateway signed, 401 to everything else."""

    timeout = 10  # seconds of silence after which a client is left

    def do_POST(self) -> None:
        """Read a message."""
        size = self.headers.get("Content-Length", "")
        known = size.isdecimal() and len(size) <= len(str(MAX_BODY))
        self.send_response(self.take(self.rfile.read(min(int(size), MAX_BODY))) if known else 411)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def take(self, body: bytes) -> int:
        """Verify a message and work on it, unless that was done before."""
        fields = ("webhook-id", "webhook-timestamp", "webhook-signature")
        message, timestamp, signatures = (self.headers.get(field, "") for field in fields)
        digest = hmac.digest(KEY, f"{message}.{timestamp}.".encode() + body, "sha256")
        expected = b"v1," + base64.b64encode(digest)
        given = [one.encode() for one in signatures.split()]
        if not any(hmac.compare_digest(expected, one) for one in given):
            return 401
        if abs(time.time() - int(timestamp)) > MAX_AGE:
            return 401
        if message not in SEEN:
            print(json.dumps(json.loads(body)), flush=True)  # do your work here
            SEEN[message] = None
            if len(SEEN) > MAX_SEEN:
                del SEEN[next(iter(SEEN))]
        return 204


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver)
print("listening on port", server.server_port, flush=True)
server.serve_forever()
