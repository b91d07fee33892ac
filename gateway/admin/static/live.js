// Live parts: they reload when something has changed, without disturbing the person.
import { find, focusNear } from "./dom.js";

// At once, then at most twice a second; the last change is always loaded.
const PAUSE = 500;
let reloadedAt = -PAUSE;
let timer = null;
const reload = () => {
  timer = null;
  reloadedAt = performance.now();
  htmx.trigger(document.body, "news");
};
export const news = () => {
  timer ??= setTimeout(reload, Math.max(0, reloadedAt + PAUSE - performance.now()));
};
for (const name of ["sse:message", "sse:presence", "sse:reset"]) document.addEventListener(name, news);
// Load what changed before the stream was open, or while it was lost.
document.addEventListener("htmx:sseOpen", news);
// Repeat a failed reload: if the stream did not break, nothing else would trigger it.
const retryNews = ({ detail }) => {
  if ("X-Live" in detail.requestConfig.headers) news();
};
document.addEventListener("htmx:sendError", retryNews);
document.addEventListener("htmx:afterOnLoad", (event) => {
  if (event.detail.xhr.status >= 500) retryNews(event);
});

// The log has no events for an operation's progress or a node's state, so the page polls them.
const poll = (id, pause, condition) => {
  setInterval(() => {
    if (!document.hidden && find(condition)) htmx.trigger(`#${id}`, "look");
  }, pause);
};
poll("live", 1000, "#live [data-unfinished]");
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
    const show = !find("dialog[open]") && (!automatic || xhr.status === 401);
    if (show) event.detail.target = find("#dialog");
    event.detail.shouldSwap = show;
    return;
  }
  if (automatic) {
    const old = target.id === "table" && requestConfig.path !== `./${find("[data-address]").dataset.address}`;
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
