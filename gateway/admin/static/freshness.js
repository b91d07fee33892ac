// How fresh the page is: the status in its header.
import { find } from "./dom.js";

const failing = new Set(); // live parts that could not be renewed
let streaming = false;
let renewed = true; // whether the page was renewed since the stream was lost
let asOf = new Date(); // when what is shown was last true

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
export const isFresh = () => {
  for (const part of failing) if (!document.getElementById(part)) failing.delete(part);
  return streaming && renewed && !failing.size;
};
const show = () => {
  const status = find("#freshness");
  if (isFresh()) asOf = new Date();
  const state = isFresh() ? "live" : "lost";
  const at = clock.format(asOf);
  const lost = find("[data-login-ended]") ? `Login ended, as of ${at}` : `Connection lost, as of ${at}, trying again`;
  const text = isFresh() ? "Live" : lost;
  if (find("span:last-child", status)?.textContent === text) return;
  status.dataset.state = state;
  const shape = Object.assign(document.createElement("span"), { className: "shape" });
  shape.setAttribute("aria-hidden", "true");
  status.replaceChildren(shape, Object.assign(document.createElement("span"), { textContent: text }));
  status.title = isFresh() ? "" : `${asOf.toISOString().slice(0, 19).replace("T", " ")} UTC`;
};

export const streamIs = (open) => {
  streaming = open;
  if (!open) renewed = false;
  show();
};
export const isStreaming = () => streaming;
export const wasRenewed = (part) => {
  failing.delete(part);
  if (streaming) renewed = true;
  else if (!failing.size) asOf = new Date();
  show();
};
export const wasNotRenewed = (part) => {
  failing.add(part);
  show();
};
