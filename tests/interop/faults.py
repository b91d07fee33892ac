"""Faults for `ice.mjs`, each a change of its text, and the sentences that the conformance kit should then name.

Every sentence is broken by one, so none of the kit's checks passes whatever it sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.conformance.sentences import Sentence as S  # noqa: N817 - it stands in every line

FOLDER: Final = Path(__file__).parent
SOURCE: Final = "ice.mjs"


@dataclass(frozen=True)
class Fault:
    """A fault: `old` stands once in the source; `new` in its place breaks `breaks`, and may break `also`."""

    old: str
    new: str
    breaks: frozenset[S]
    also: frozenset[S] = frozenset()

    def write(self, folder: Path) -> Path:
        """Write the ICE with this fault into a folder."""
        text = (FOLDER / SOURCE).read_text("utf-8")
        assert text.count(self.old) == 1, f"{self.old!r} stands {text.count(self.old)} times there"
        path = folder / SOURCE
        path.write_text(text.replace(self.old, self.new), "utf-8")
        (folder / "handlers.mjs").write_bytes((FOLDER / "handlers.mjs").read_bytes())
        return path


def fault(old: str, new: str, *breaks: S, also: tuple[S, ...] = ()) -> Fault:
    return Fault(old, new, frozenset(breaks), frozenset(also))


REQUESTS: Final = {
    "the token keeps its byte order mark": fault(
        "readFileSync(tokenFile, 'utf8').trim()",
        "readFileSync(tokenFile, 'latin1').replace(/[ \\t\\r\\n]/g, '')",
        S.TOKEN_TRIMMED,
        also=(S.AUTHORIZATION, S.PROOF_CLAIMS),
    ),
    "a new key at each start": fault("if (!stored('key.pem')) store(", "store(", S.KEY_KEPT),
    "others may read the key": fault(
        "text, { mode: 0o600, flush: true })",
        "text)\n  fs.chmodSync(folder, 0o755)",
        S.KEY_PRIVATE,
    ),
    "the first token is kept": fault(
        "const token = fs.readFileSync(tokenFile, 'utf8').trim()",
        "if (!stored('token')) store('token', fs.readFileSync(tokenFile, 'utf8').trim())\nconst token = stored('token')",
        S.NEW_TOKEN,
        also=(S.AUTHORIZATION, S.PROOF_CLAIMS),
    ),
    "an old version": fault(
        "'Sec-WebSocket-Version': 13", "'Sec-WebSocket-Version': 8", S.HANDSHAKE
    ),
    "the path is dropped": fault(
        "`${gateway.replace(/\\/+$/, '')}/ice/v1`",
        "'/ice/v1', gateway",
        S.PREFIX,
        also=(S.HANDSHAKE, S.PROOF_CLAIMS),
    ),
    "another scheme": fault(
        "Authorization: `DPoP ${token}`",
        "Authorization: `Bearer ${token}`",
        S.AUTHORIZATION,
        also=(S.TOKEN_TRIMMED,),
    ),
    "another typ": fault("typ: 'dpop+jwt'", "typ: 'JWT'", S.PROOF_FORM),
    "a signature in DER": fault(", dsaEncoding: 'ieee-p1363'", "", S.PROOF_KEY),
    "htu without its path": fault("htu: url.href", "htu: url.origin", S.PROOF_CLAIMS),
    "ath in hex": fault(
        ".update(token).digest('base64url')", ".update(token).digest('hex')", S.PROOF_CLAIMS
    ),
    "milliseconds": fault("Math.floor(Date.now() / 1000)", "Date.now()", S.PROOF_TIME),
    "the same jti": fault("jti: crypto.randomUUID()", "jti: instance", S.PROOF_FRESH),
    "no nonce": fault(
        "if (nonces) nonce = headers['dpop-nonce']",
        "if (nonces) nonce = ''",
        *(S.NONCE, S.NONCE_AGAIN),
    ),
    "any subprotocol": fault(
        "&& response.headers['sec-websocket-protocol'] === 'ice.v1'", "", S.NO_SUBPROTOCOL
    ),
    "two processes": fault(
        "() => stop('another process uses this folder')",
        "() => lock.emit('listening')",
        S.ONE_PROCESS,
    ),
    "any certificate": fault(
        "{ agent: false,", "{ agent: false, rejectUnauthorized: false,", S.CERTIFICATE
    ),
    "plain http everywhere": fault("if (url.protocol === 'http:' &&", "if (0 &&", S.PLAIN_HTTP),
    "the token is printed": fault(
        "function connect() {\n", "function connect() {\n  console.log(token)\n", S.TOKEN_SECRET
    ),
}

REFUSALS: Final = {
    "no refusal is retried": fault(
        "if (typeof problem.code !== 'string' || problem.retry !== false) return Math.max(after, backoff())",
        "",
        S.RETRIED,
    ),
    "Retry-After is ignored": fault(
        "atLeast(headers['retry-after']) : 0",
        "0 : 0",
        *(S.RETRY_AFTER, S.RETRY_AFTER_LEAST),
    ),
    "every refusal is retried": fault(
        "stop(`${problem.code}: ${problem.detail}`)",
        "backoff()",
        *(S.FINAL, S.UNKNOWN_REFUSAL, S.FINAL_ADMITTED),
    ),
    "the code decides": fault(
        "problem.retry !== false",
        "problem.code !== 'proof-invalid'",
        S.RETRY_DECIDES,
    ),
    "a proxy's page is final": fault(
        "typeof problem.code !== 'string' || problem.retry !== false",
        "problem.retry === true",
        S.NO_PROBLEM,
    ),
    "no answer is final": fault(
        "request.on('error', () => end(backoff))",
        "request.on('error', () => stop('no answer'))",
        S.NO_ANSWER,
    ),
    "redirects are followed": fault(
        "    let body = ''\n",
        "    if (response.headers.location) { url.href = response.headers.location; return end(() => 0) }\n    let body = ''\n",
        S.REDIRECT,
    ),
    "an admission is forgotten": fault(
        "const slow = stored('admitted') === ath &&", "const slow = false &&", S.ADMITTED_BEFORE
    ),
    "long waits": fault(
        "Math.min(60, 2 ** failures++)",
        "(15 + failures++)",
        S.BACKOFF_BOUND,
        also=(S.RETRIED, S.BACKOFF_GROWS),
    ),
    "no jitter": fault("Math.random() * Math.min", "1.0 * Math.min", S.BACKOFF_JITTER),
    "the backoff does not grow": fault(
        "Math.min(60, 2 ** failures++)", "1", *(S.BACKOFF_GROWS, S.BACKOFF_SESSIONS)
    ),
    "an admission resets the backoff": fault(
        "[socket, nonces] = [connection, 0]",
        "[socket, nonces, failures] = [connection, 0, 0]",
        S.BACKOFF_SESSIONS,
    ),
}

SESSIONS: Final = {
    "a batch": fault(
        "frame(1, Buffer.from(JSON.stringify({ jsonrpc: '2.0', ...message })))",
        "frame(1, Buffer.from(JSON.stringify([{ jsonrpc: '2.0', ...message }])))",
        S.MESSAGES,
        also=(S.HELLO,),
    ),
    "binary frames": fault(
        "frame(1, Buffer.from(JSON", "frame(2, Buffer.from(JSON", S.MESSAGES, also=(S.HELLO,)
    ),
    "unknown notifications are violations": fault(
        "else if (id === undefined) return\n",
        "else if (id === undefined) throw new Error(method)\n",
        S.UNKNOWN_NOTIFICATION,
    ),
    "unknown requests are not answered": fault(
        "refuse(id, -32601, `no method ${method}`)", "id", S.UNKNOWN_REQUEST
    ),
    "unknown members are refused": fault(
        "else if (params.kind !== 'execute')",
        "else if (Object.keys(params).length > 4 || params.kind !== 'execute')",
        S.UNKNOWN_MEMBER,
    ),
    "unexpected responses are violations": fault(
        "    if (known) record(id,",
        "    if (!known) throw new Error(id)\n    record(id,",
        S.UNEXPECTED_RESPONSE,
    ),
    "a fragment is a message": fault("if (buffer[0] & 0x80) try", "try", S.FRAGMENTS),
    "messages of 64 KiB": fault("size) > MiB)", "size) > 65_536)", S.LARGEST),
    "no hello": fault(
        "    send({ method: 'ice.hello'", "    if (0) send({ method: 'ice.hello'", S.HELLO
    ),
    "a number for a text": fault("version: '1'", "version: 1", S.HELLO),
    "the instance is stored": fault("instance, running", "instance: name, running", S.INSTANCE),
    "an instance for each session": fault(
        "instance, running", "instance: crypto.randomUUID(), running", S.INSTANCE
    ),
    "empty pongs": fault(
        "frame(10, payload)", "frame(10, Buffer.alloc(0))", S.PONG, also=(S.FRAGMENTS,)
    ),
    "pings do not count": fault(
        "    alive()\n    buffer = ",
        "    if ((chunk[0] & 15) !== 9) alive()\n    buffer = ",
        S.PINGS_COUNT,
        also=(S.SILENCE,),
    ),
    "silence has no end": fault(
        "violation(1001), 1000 * silence", "violation(1001), 100_000 * silence", S.SILENCE
    ),
    "one heartbeat": fault("silence = 2 * message", "silence = 1 * message", S.SILENCE),
}

OPERATIONS: Final = {
    "50 levels": fault("> 102) return true", "> 50) return true", S.DEEPEST),
    "any depth": fault("else if (tooComplex(text))", "else if (0)", S.TOO_COMPLEX),
    "accepted late": fault(
        "    send({ id, result: { accepted: true } })\n",
        "    setTimeout(() => send({ id, result: { accepted: true } }), 1500)\n",
        S.ACCEPTED,
    ),
    "another number for a kind": fault(
        "refuse(id, -32601, `no handler", "refuse(id, -32000, `no handler", S.UNKNOWN_KIND
    ),
    "no result": fault(
        "finish(id, { outcome: 'succeeded', result })",
        "finish(id, { outcome: 'succeeded' })",
        S.FINISH,
    ),
    "a finish is sent twice": fault(
        "  send(operations.get(id).finish)\n}",
        "  send(operations.get(id).finish)\n  send(operations.get(id).finish)\n}",
        S.FINISH,
    ),
    "an error is a text": fault(
        "error: { code: `${code}`, message: `${message}` }", "error: `${message}`", S.FINISH_FAILED
    ),
    "results of any size": fault(
        "if (Buffer.byteLength(JSON.stringify(result)) > MAX_VALUE)", "if (0)", S.TOO_LARGE
    ),
    "half the size": fault("> MAX_VALUE)", "> MAX_VALUE / 2)", S.LARGEST_VALUE),
    "percent": fault(
        "params: { id, ...more }", "params: { id, ...more, fraction: 50 }", S.PROGRESS
    ),
    "a log in one piece": fault(
        "if (running.has(id)) send({ method, params: { id, ...more } })",
        "if (running.has(id)) send({ method, params: { id, ...more, text: 'x'.repeat(70_000) } })",
        S.LOG,
    ),
    "a known id is run again": fault("if (!known) run(", "run(", *(S.ID_ONCE, S.ID_ONCE_RESTARTED)),
    "a finish is sent once": fault(
        "if (waiting.length) send(operations.get(waiting.shift()).finish)",
        "waiting = []",
        *(S.FINISH_REPEATED, S.FINISH_LATER, S.EIGHT_FINISHES),
    ),
    "a finish is not stored": fault(
        "record(id, { finish: {", "note(id, { finish: {", S.FINISH_DURABLE
    ),
    "answers are forgotten": fault(
        "if (known) record(id, { answered: true, finish: null })",
        "",
        *(S.FINISH_ANSWERED, S.FINISH_REFUSED),
    ),
    "all finishes at once": fault(
        "    repeat()\n  }\n  const alive",
        "    while (waiting.length) repeat()\n  }\n  const alive",
        S.EIGHT_FINISHES,
    ),
    "nothing runs": fault("running: [...running.keys()]", "running: []", S.RUNNING),
    "what was interrupted is forgotten": fault(
        "if (!made && !answered) finish(", "if (0) finish(", S.INTERRUPTED
    ),
    "a cancel is ignored": fault("running.get(params.id)?.(", "void (", S.CANCEL),
    "a code of its own at the deadline": fault(
        "code: 'cancelled', message",
        "code: params.reason === 'deadline' ? 'late' : 'cancelled', message",
        S.CANCEL_DEADLINE,
    ),
    "known reasons alone": fault(
        "running.get(params.id)?.(",
        "(['requested', 'deadline'].includes(params.reason) ? running : new Map()).get(params.id)?.(",
        S.CANCEL_OTHER,
    ),
    "unknown operations cannot be cancelled": fault(
        "running.get(params.id)?.(", "running.get(params.id)(", S.CANCEL_UNKNOWN
    ),
}

_STOPS: Final = "if (code === 4101 || code === 4102)"
_WAITS: Final = "if (code > 4100 && code < 4200)"
CLOSINGS: Final = {
    "4101 and 4102 are followed by a reconnection": fault(
        _STOPS, f"{_STOPS} return backoff()\n  if (0)", S.CLOSE_STOPS
    ),
    "4103 stops it": fault(_STOPS, "if (code < 4104 && code > 4100)", S.CLOSE_SUPERSEDED),
    "4103 is followed at once": fault(
        _WAITS, "if (code > 4103 && code < 4200)", S.CLOSE_SUPERSEDED
    ),
    "4150 is followed at once": fault(_WAITS, "if (code === 4103)", S.CLOSE_UNKNOWN),
    "4202 stops it": fault(
        _STOPS, "if (code < 4103 && code > 4100 || code === 4202)", S.CLOSE_RECONNECTS
    ),
    "1009 stops it": fault(
        _STOPS, "if (code < 4103 && code > 4100 || code === 1009)", S.CLOSE_VIOLATION
    ),
    "4999 stops it": fault(
        _STOPS, "if (code < 4103 && code > 4100 || code === 4999)", S.CLOSE_OTHER
    ),
    "a lost connection stops it": fault(
        _STOPS, "if (code < 4103 && code > 4100 || code === 1006)", S.CLOSE_LOST
    ),
    "close frames are not answered": fault(
        "else if (opcode === 8) { frame(8, payload); return",
        "else if (opcode === 8) { connection.destroy(); return",
        S.CLOSE_ANSWERED,
    ),
    "1012 is like any other": fault(
        "if (code !== 1012) return backoff()", "return backoff()", *(S.RESTART, S.RESTART_LEAST)
    ),
}

FAULTS: Final = REQUESTS | REFUSALS | SESSIONS | OPERATIONS | CLOSINGS
