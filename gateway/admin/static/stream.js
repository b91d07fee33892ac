// This tab's end of the stream of events, which all tabs of the browser share (`stream_worker.js`).
const EVERY = 20_000; // how often a visible tab says that it is there
const AGAIN = 2_000; // until the module is asked for again, while the gateway is away

const fetched = async (attempt = 0) => {
  try {
    // A browser may remember by its address that a module could not be fetched.
    return await import(`./stream_worker.js${attempt ? `?${attempt}` : ""}`);
  } catch {
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
    return fetched(attempt + 1);
  }
};

// `onMessage` gets each message of the worker. Returns a function that tells the worker that the gateway answers.
export const follow = (onMessage) => {
  let port;
  const use = (used) => {
    port = used;
    port.onmessage = ({ data }) => onMessage(data);
    say();
  };
  const say = () => port?.postMessage(document.hidden ? "hidden" : "visible");
  const inPage = async () => {
    const { attach } = await fetched();
    const { port1, port2 } = new MessageChannel();
    attach(port2);
    use(port1);
  };
  try {
    const worker = new SharedWorker(new URL("stream_worker.js", import.meta.url), { type: "module" });
    worker.addEventListener("error", inPage, { once: true });
    use(worker.port);
  } catch {
    inPage(); // the browser has none, or does not allow it
  }
  document.addEventListener("visibilitychange", say);
  addEventListener("pageshow", say);
  addEventListener("pagehide", () => port?.postMessage("hidden"));
  setInterval(() => {
    if (!document.hidden) say();
  }, EVERY);
  return () => port?.postMessage("again");
};
