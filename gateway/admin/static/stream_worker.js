// The stream of events, one for all visible tabs of a browser: over HTTP/1.1 it has six connections for a host.
// It runs in a SharedWorker, or in the page where the browser has none.
//
// A tab sends "visible" now and then, "hidden" when it is hidden, and "again" when the gateway has answered it.
// The worker sends "live", "lost" and "news", and "alive" for a ping of the gateway.
const STREAM = new URL("../api/v1/events/stream", import.meta.url);
const SILENCE = 40_000; // the gateway sends something every 15 s
const GONE = 60_000; // a tab that died says nothing more
const FIRST = 1000;
const LONGEST = 15_000;
const REFUSED = 60_000; // after a login has ended, unless a tab says "again"

const tabs = new Map(); // ports of visible tabs, and when each was heard
let open = null; // what ends the present stream
let live = false;
let retry = () => {};

const tell = (message) => {
  live = message !== "lost";
  for (const port of tabs.keys()) port.postMessage(message);
};

// Reads until the stream ends or fails; returns the status of the answer.
const read = async (controller) => {
  let silence = 0;
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => controller.abort(), SILENCE);
  };
  heard();
  try {
    const options = { cache: "no-store", redirect: "error", signal: controller.signal };
    const answer = await fetch(STREAM, options);
    if (!answer.ok) return answer.status;
    tell("live");
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return answer.status;
      heard();
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      tell(lines.some((line) => line.startsWith("data:")) ? "news" : "alive");
    }
  } catch {
    return 0;
  } finally {
    clearTimeout(silence);
  }
};

const run = async () => {
  const ended = new AbortController();
  open = ended;
  let pause = FIRST;
  while (!ended.signal.aborted) {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    ended.signal.addEventListener("abort", stop);
    const began = Date.now();
    const status = await read(attempt);
    ended.signal.removeEventListener("abort", stop);
    if (ended.signal.aborted) return;
    tell("lost");
    pause = Date.now() - began > LONGEST ? FIRST : Math.min(2 * pause, LONGEST);
    const wait = [401, 403].includes(status) ? REFUSED : pause * (0.5 + Math.random() / 2);
    await new Promise((resolve) => {
      retry = resolve;
      setTimeout(resolve, wait);
    });
  }
};

// Opens the stream for the first visible tab, and ends it after the last.
const balance = () => {
  if (tabs.size && !open) run();
  else if (!tabs.size && open) {
    open.abort();
    retry();
    open = null;
    live = false;
  }
};

export const attach = (port) => {
  port.onmessage = ({ data }) => {
    if (data === "hidden") {
      tabs.delete(port);
    } else {
      if (!tabs.has(port) && live) port.postMessage("live");
      tabs.set(port, Date.now());
      if (data === "again") retry();
    }
    balance();
  };
};
setInterval(() => {
  for (const [port, at] of tabs) if (Date.now() - at > GONE) tabs.delete(port);
  balance();
}, GONE / 3);

if ("SharedWorkerGlobalScope" in globalThis) {
  addEventListener("connect", ({ ports: [port] }) => attach(port));
}
