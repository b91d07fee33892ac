// Live parts: they reload when something has changed, without disturbing the person.
import { find, focusNear } from "./dom.js";
import { isFresh, isStreaming, streamIs, wasNotRenewed, wasRenewed } from "./freshness.js";
import { follow } from "./stream.js";

const PAUSE = 500; // at once, then at most twice a second; the last change is always loaded
const LONGEST = 15_000; // between two attempts
const LOOK = 900; // at unfinished operations: a change is shown within a second
const SLOW = 300; // after which a wait is shown
export const TIMEOUT = 20_000; // of a request that the page makes by itself
let reloadedAt = -PAUSE;
let timer = null;
const reload = () => {
  timer = null;
  if (document.hidden) return; // it reloads when it is shown
  reloadedAt = performance.now();
  htmx.trigger(document.body, "news");
};
export const news = () => {
  timer ??= setTimeout(reload, Math.max(0, reloadedAt + PAUSE - performance.now()));
};

// Later: after a failure, or where there is no stream. It takes longer each time until the page is fresh.
let later = null;
let attempts = 0;
const newsIn = (pause) => {
  clearTimeout(later);
  later = setTimeout(news, pause);
};
const tryAgain = () => {
  if (find("[data-login-ended]")) return; // the person has to log in first
  newsIn(Math.min(LONGEST, 1000 * 2 ** attempts) * (0.5 + Math.random() / 2));
  attempts += 1;
};

// The address of the table: what the filter, a sort or a page asked for last, even if it failed.
let wanted = null;
const want = (address) => {
  wanted = address;
  find("#table")?.setAttribute("aria-busy", wanted !== null);
};
export const tableAddress = () => wanted ?? `./${find("[data-address]").dataset.address}`;

// Whether a request renews a live part by itself, or asks for another table.
const isAutomatic = ({ requestConfig }) => requestConfig.elt.hasAttribute("data-live");
const asksForTable = ({ requestConfig, target }) => target?.id === "table" && requestConfig.verb === "get";
export const isTriedAgain = (detail) => isAutomatic(detail) || asksForTable(detail);
export const isLive = ({ target }) => target?.hasAttribute("data-live");
const isLost = (status) => status >= 500 || [0, 408, 429].includes(status);

// A table that a person waits for says so, unless it comes at once.
const isAskedFor = (detail) => asksForTable(detail) && !isAutomatic(detail);
let slow = null;
document.addEventListener("htmx:beforeRequest", ({ detail }) => {
  if (!isAskedFor(detail)) return;
  clearTimeout(slow);
  slow = setTimeout(() => detail.target.setAttribute("aria-busy", true), SLOW);
});
document.addEventListener("htmx:afterRequest", ({ detail }) => {
  if (!isAskedFor(detail)) return;
  clearTimeout(slow);
  want(wanted);
});

const failed = ({ detail }) => {
  if (!isTriedAgain(detail)) return;
  if (!isAutomatic(detail)) want(detail.pathInfo.finalRequestPath);
  wasNotRenewed(detail.target.id);
  tryAgain();
};
const refused = ({ requestConfig, xhr }) => {
  if (xhr.status === 401) {
    wasNotRenewed(requestConfig.elt.id);
    tryAgain();
  } else if (requestConfig.path === wanted) {
    want(null);
    news();
  } else if ([403, 404].includes(xhr.status) && !find("dialog[open]")) {
    location.reload(); // it may not be seen any more, such as the ICE of another user: say so
  }
};
let pollEvery; // the usual pause of a page without a stream
let again = () => {}; // tells the stream that the gateway answers
const answered = ({ detail }) => {
  const { requestConfig, xhr } = detail;
  if (isLost(xhr.status)) return failed({ detail });
  if (xhr.status >= 400) return isAutomatic(detail) && refused(detail);
  if (!isTriedAgain(detail)) return;
  if (asksForTable(detail) && (!isAutomatic(detail) || requestConfig.path === wanted)) {
    if (isAutomatic(detail)) history.pushState({ htmx: true }, "", wanted);
    want(null);
  }
  wasRenewed(detail.target.id);
  if (isFresh()) {
    attempts = 0;
    clearTimeout(later);
  }
  if (pollEvery) newsIn((xhr.getResponseHeader("X-Poll-After") ?? pollEvery) * 1000);
  else if (!isStreaming()) {
    again();
    tryAgain();
  }
};
for (const name of ["htmx:sendError", "htmx:timeout"]) document.addEventListener(name, failed);
document.addEventListener("htmx:afterOnLoad", answered);
document.addEventListener("htmx:historyRestore", () => want(null));

// The stream says when something has changed; a page without one asks now and then.
const onMessage = (message) => {
  streamIs(message !== "lost");
  if (message === "lost") tryAgain();
  else if (message !== "alive") news();
};
document.addEventListener("DOMContentLoaded", () => {
  if (!find("#freshness") || !find("[data-live][hx-get]")) return;
  pollEvery = document.body.dataset.poll;
  if (pollEvery) {
    streamIs(true);
    newsIn(pollEvery * 1000);
  } else {
    again = follow(onMessage);
    tryAgain(); // should there be neither a stream nor a word of it
  }
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    attempts = 0;
    if (pollEvery || !isStreaming()) news(); // else the stream says when it is open again
  });
});

// The log has no events for an operation's state and progress or a node's state, so the page polls them: operations
// only while one is unfinished, for the log has its request.
const poll = (id, pause, condition) => {
  setInterval(() => {
    if (!document.hidden && find(condition)) htmx.trigger(`#${id}`, "look");
  }, pause);
};
poll("live", LOOK, "#live [data-unfinished]");
poll("table", LOOK, "#table [data-unfinished]");
poll("table", 5000, "#table[data-changing]");

// Live parts reload by themselves, but not while a button is pressed or when nothing has changed.
const shown = new WeakMap();
let pressed = false;
let missed = false;
let focused = null;
document.addEventListener("pointerdown", (event) => {
  pressed = event.button === 0 && event.target.closest("[data-live]") !== null;
}, true);
for (const name of ["pointerup", "pointercancel"]) {
  document.addEventListener(name, () => {
    pressed = false;
    if (missed) news();
    missed = false;
  }, true);
}
document.addEventListener("htmx:beforeSwap", (event) => {
  const { target, xhr, requestConfig } = event.detail;
  if (!target || !target.hasAttribute("data-live")) return;
  const automatic = requestConfig.elt === target;
  if (xhr.status >= 400) {
    // An error does not replace the live part; a dialog shows it.
    const quiet = automatic || (isLost(xhr.status) && isTriedAgain(event.detail));
    const show = !find("dialog[open]") && (!quiet || xhr.status === 401);
    if (show) event.detail.target = find("#dialog");
    event.detail.shouldSwap = show;
    return;
  }
  if (automatic) {
    const old = target.id === "table" && requestConfig.path !== tableAddress();
    if (old || pressed) {
      event.detail.shouldSwap = false;
      missed = pressed;
      if (!pressed) news();
      return;
    }
    if (shown.get(target) === xhr.response) {
      event.detail.shouldSwap = false;
      return;
    }
  }
  shown.set(target, xhr.response);
  focused = target.contains(document.activeElement) ? document.activeElement : null;
  const region = find("[role=region]", target);
  target.dataset.scrolled = region ? region.scrollLeft : 0;
});
document.addEventListener("htmx:afterSwap", (event) => {
  const target = event.detail.target ?? event.target; // without `detail.target` when history is restored
  if (target.dataset.scrolled > 0) find("[role=region]", target).scrollLeft = target.dataset.scrolled;
  if (focused && document.activeElement === document.body) focusNear(focused);
  focused = null;
});
