// An ICE on Node 20 without dependencies, written from docs/protocol.md: node ice.mjs GATEWAY TOKEN_FILE STATE_DIR
import crypto from 'node:crypto'
import fs from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { execute } from './handlers.mjs'
const [gateway, tokenFile, folder] = process.argv.slice(2)
const url = new URL(`${gateway.replace(/\/+$/, '')}/ice/v1`)
const instance = crypto.randomBytes(16).toString('hex'), MiB = 1024 * 1024, MAX_VALUE = 1_000_000
const stop = (line) => { console.error(line); process.exit(3) } // what still runs ends with it

// --- the state: key, token, journal
if (url.protocol === 'http:' && !/^(localhost|127(\.\d+){3}|\[::1\])$/.test(url.hostname)) stop('plain http is for loopback only')
fs.mkdirSync(folder, { recursive: true })
fs.chmodSync(folder, 0o700)
const name = crypto.createHash('sha256').update(fs.realpathSync(folder)).digest('hex')
const lock = net.createServer().listen(`\0ice-${name}`).on('error', () => stop('another process uses this folder')) // Linux frees it
await new Promise((resolve) => lock.on('listening', resolve))
const stored = (file) => fs.existsSync(path.join(folder, file)) ? fs.readFileSync(path.join(folder, file), 'utf8') : ''
function store(file, text) {
  fs.writeFileSync(path.join(folder, `${file}.new`), text, { mode: 0o600, flush: true })
  fs.renameSync(path.join(folder, `${file}.new`), path.join(folder, file))
}
const token = fs.readFileSync(tokenFile, 'utf8').trim() // a byte order mark is white space here
if (!stored('key.pem')) store('key.pem', crypto.generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ type: 'pkcs8', format: 'pem' }))
const key = crypto.createPrivateKey(stored('key.pem'))
const ath = crypto.createHash('sha256').update(token).digest('base64url')
const operations = new Map() // id -> { finish, answered }
const note = (id, change) => operations.set(id, { ...operations.get(id), ...change })
for (const line of stored('journal').split('\n')) {
  try { const { id, ...change } = JSON.parse(line); note(id, change) } catch { /* the end of one that was killed */ }
}
const journal = fs.openSync(path.join(folder, 'journal'), 'a', 0o600)
function record(id, change) { // durable when it returns
  fs.writeSync(journal, `\n${JSON.stringify({ id, ...change })}`)
  fs.fsyncSync(journal)
  note(id, change)
}

// --- attempts
let failures = 0, nonces = 0, nonce, socket, superseded = []
const backoff = () => Math.random() * Math.min(60, 2 ** failures++)
const atLeast = (seconds) => Math.min(3600, Math.max(1, Number(seconds) || 0))
function proof() {
  const { kty, crv, x, y } = crypto.createPublicKey(key).export({ format: 'jwk' })
  const header = { typ: 'dpop+jwt', alg: 'ES256', jwk: { kty, crv, x, y } }
  const claims = { jti: crypto.randomUUID(), htm: 'GET', htu: url.href, iat: Math.floor(Date.now() / 1000), ath, nonce }
  const signed = [header, claims].map((one) => Buffer.from(JSON.stringify(one)).toString('base64url')).join('.')
  return `${signed}.${crypto.sign('sha256', Buffer.from(signed), { key, dsaEncoding: 'ieee-p1363' }).toString('base64url')}`
}
function connect() {
  const challenge = crypto.randomBytes(16).toString('base64')
  const request = (url.protocol === 'https:' ? https : http).request(url, { agent: false, headers: {
    Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Version': 13, 'Sec-WebSocket-Key': challenge,
    'Sec-WebSocket-Protocol': 'ice.v1', Authorization: `DPoP ${token}`, DPoP: proof() } })
  const timer = setTimeout(() => request.destroy(new Error('no answer')), 30_000)
  let ended = false
  const end = (seconds) => { if (!ended) setTimeout(connect, 1000 * seconds()); ended = true; clearTimeout(timer) }
  nonce = undefined
  request.on('error', () => end(backoff))
  request.on('upgrade', (response, connection, head) => {
    const accept = crypto.createHash('sha1').update(`${challenge}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64')
    const good = response.headers['sec-websocket-accept'] === accept && response.headers['sec-websocket-protocol'] === 'ice.v1'
    if (!good) { connection.destroy(); return end(backoff) }
    ended = true
    clearTimeout(timer)
    serve(connection, head)
  })
  request.on('response', (response) => {
    let body = ''
    response.on('data', (data) => { if (body.length < 65_536) body += data })
    response.on('error', () => end(backoff)).on('end', () => end(() => refused(response.headers, body)))
  })
  request.end()
}
function refused(headers, body) { // returns the seconds to wait
  const after = 'retry-after' in headers ? atLeast(headers['retry-after']) : 0
  let problem = {}
  try { problem = JSON.parse(body) ?? {} } catch { /* of something in between */ }
  nonces = problem.code === 'use-dpop-nonce' ? nonces + 1 : 0
  if (nonces) nonce = headers['dpop-nonce']
  if (nonces === 1 && nonce) return 0
  if (typeof problem.code !== 'string' || problem.retry !== false) return Math.max(after, backoff())
  const slow = stored('admitted') === ath && ['token-invalid', 'proof-invalid', 'bad-handshake'].includes(problem.code)
  return slow ? Math.max(after, 300 + 300 * Math.random()) : stop(`${problem.code}: ${problem.detail}`)
}
function closed(code, reason) { // returns the seconds to wait
  if (code === 4101 || code === 4102) stop(`closed ${code} ${reason}: a person must act`)
  if (code === 4103) superseded.push(Date.now())
  if (code === 4103 && Date.now() - superseded.at(-3) < 900_000) stop('another process runs as this ICE')
  if (code > 4100 && code < 4200) return 60 + 60 * Math.random()
  if (code !== 1012) return backoff()
  try { return atLeast(JSON.parse(reason).retry_after) } catch { return Math.max(1, backoff()) }
}

// --- a session
function frame(opcode, data) { // RFC 6455 section 5.2, masked
  const size = data.length, mask = crypto.randomBytes(4)
  const length = size < 126 ? [size] : size < 65_536 ? [126, size >> 8, size & 255] : [127, 0, 0, 0, 0, 0, size >> 16, (size >> 8) & 255, size & 255]
  const masked = Buffer.from(data.map((byte, at) => byte ^ mask[at & 3]))
  if (socket?.writable) socket.write(Buffer.concat([Buffer.from([0x80 | opcode, 0x80 | length[0], ...length.slice(1)]), mask, masked]))
}
const send = (message) => frame(1, Buffer.from(JSON.stringify({ jsonrpc: '2.0', ...message })))
function serve(connection, head) {
  let buffer = head, parts = [], welcomed = false, ended = false, silence = 30, timer
  const opened = Date.now();
  [socket, nonces] = [connection, 0]
  const end = (code, reason) => {
    if (ended) return;
    [ended, socket] = [true, undefined]
    clearTimeout(timer)
    connection.end()
    setTimeout(() => connection.destroy(), 1000)
    if (Date.now() - opened >= 60_000) failures = 0
    setTimeout(connect, 1000 * closed(code, reason))
  }
  const violation = (code) => { frame(8, Buffer.from([code >> 8, code & 255])); end(code, '') }
  const received = (text) => {
    const message = JSON.parse(text)
    if (welcomed) return handle(message, text)
    if (message.method !== 'ice.welcome') throw new Error('no welcome')
    welcomed = true
    if (message.params.heartbeat > 0) silence = 2 * message.params.heartbeat
    alive()
    store('admitted', ath)
    send({ method: 'ice.hello', params: { version: '1', platform: `${os.type()} ${os.release()}`, hostname: os.hostname(), instance, running: [...running.keys()] } })
    waiting = [...operations].filter(([, { finish, answered }]) => finish && !answered).map(([id]) => id)
    repeat()
  }
  const alive = () => { clearTimeout(timer); if (!ended) timer = setTimeout(() => violation(1001), 1000 * silence) }
  const data = (chunk) => {
    alive()
    buffer = Buffer.concat([buffer, chunk])
    for (let size, from; !ended && buffer.length > 1; buffer = buffer.subarray(from + size)) {
      [size, from] = [buffer[1] & 127, 2]
      if (size > 125) from = size === 126 ? 4 : 10
      if (buffer.length < from) return
      if (from > 2) size = from === 4 ? buffer.readUInt16BE(2) : Number(buffer.readBigUInt64BE(2))
      if (parts.reduce((sum, part) => sum + part.length, size) > MiB) return violation(1009)
      if (buffer.length < from + size) return
      const [opcode, payload] = [buffer[0] & 15, buffer.subarray(from, from + size)]
      if (opcode === 9) frame(10, payload)
      else if (opcode === 2) return violation(1003)
      else if (opcode === 8) { frame(8, payload); return end(size > 1 ? payload.readUInt16BE(0) : 1005, payload.subarray(2).toString()) }
      else if (opcode < 2) {
        parts.push(payload)
        if (buffer[0] & 0x80) try { received(Buffer.concat(parts.splice(0)).toString()) } catch { return violation(1008) }
      }
    }
  }
  connection.on('data', data).on('error', () => {}).on('close', () => end(1006, ''))
  data(Buffer.alloc(0)) // the welcome may have come with the 101
}
function tooComplex(text) { // beyond 100 levels within an operation's params, or 30 digits
  const bare = text.replace(/"(?:[^"\\]|\\.)*"/g, '""')
  let depth = 0
  for (const sign of bare) if ((depth += '[{'.includes(sign) - ']}'.includes(sign)) > 102) return true
  return (bare.match(/-?\d[\d.eE+-]*/g) ?? []).some((number) => number.replace(/\D/g, '').length > 30 || !Number.isFinite(Number(number)))
}

// --- operations
const running = new Map() // id -> a function that ends the work with an error
let waiting = [] // ids of finishes to repeat, each after the answer to the one before
const repeat = () => { if (waiting.length) send(operations.get(waiting.shift()).finish) }
const refuse = (id, code, message) => send({ id, error: { code, message } })
function handle({ method, id, params }, text) {
  const known = operations.get(method === undefined ? id : params?.id)
  if (method === undefined) { // the answer to a finish: `{}`, or a refusal, which is final
    if (known) record(id, { answered: true, finish: null })
    repeat()
  } else if (method === 'operation.cancel') running.get(params.id)?.({ code: 'cancelled', message: `${params.reason}` })
  else if (id === undefined) return
  else if (method !== 'operation.run') refuse(id, -32601, `no method ${method}`)
  else if (tooComplex(text)) refuse(id, -32602, 'JSON beyond the bounds')
  else if (params.kind !== 'execute') refuse(id, -32601, `no handler for ${params.kind}`)
  else {
    if (!known) record(params.id, {})
    send({ id, result: { accepted: true } })
    if (known?.finish) send(known.finish)
    if (!known) run(params.id, params.params)
  }
}
function run(id, params) {
  const cancelled = new Promise((_, reject) => running.set(id, reject))
  const report = (method, more) => { if (running.has(id)) send({ method, params: { id, ...more } }) }
  Promise.race([execute(params, report), cancelled]).then((result = null) => {
    if (Buffer.byteLength(JSON.stringify(result)) > MAX_VALUE) throw { code: 'too-large', message: 'the result is too large' }
    finish(id, { outcome: 'succeeded', result })
  }).catch(({ code = 'failed', message }) => finish(id, { outcome: 'failed', error: { code: `${code}`, message: `${message}` } }))
}
function finish(id, outcome) {
  running.delete(id)
  record(id, { finish: { method: 'operation.finish', id, params: { id, ...outcome } } })
  send(operations.get(id).finish)
}
for (const [id, { finish: made, answered }] of operations) if (!made && !answered) finish(id, { outcome: 'failed', error: { code: 'interrupted', message: 'restarted' } })
connect()
