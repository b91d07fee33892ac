// What the conformance kit asks of an ICE program: docs/protocol.md, section 8.
let count = 0

// `report` sends a notification about the operation. Throws { code, message } for work that fails.
export async function execute({ conformance, value, seconds, code, message, log, bytes }, report) {
  if (conformance === 'echo') return value
  if (conformance === 'count') return { count: ++count }
  if (conformance === 'sleep') return new Promise((resolve) => setTimeout(resolve, 1000 * seconds, {}))
  if (conformance === 'big') return 'x'.repeat(bytes)
  if (conformance === 'fail') throw { code, message }
  if (conformance !== 'report') throw { code: 'bad-params', message: 'unknown' }
  report('operation.progress', { fraction: 0.5, message })
  const letters = [...log] // whole characters, at most 4 bytes each
  while (letters.length) report('operation.log', { text: letters.splice(0, 16_384).join('') })
  return {}
}
