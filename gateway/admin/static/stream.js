// This tab's end of the stream of events, which all tabs of the browser share (`stream_worker.js`).
const EVERY = 20_000; // how often a visible tab says that it is there

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
    const { attach } = await import("./stream_worker.js");
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
