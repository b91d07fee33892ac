// Messages in a corner. Those about a failure stay until they are dismissed.
import { all, find } from "./dom.js";

const MOST = 4;
const STAYS = 12_000;

const place = () => {
  // Below an open dialog a message could neither be read nor dismissed.
  (find("dialog[open]") ?? document.body).append(find("#notices"));
};
document.addEventListener("close", ({ target }) => {
  if (target.contains(find("#notices"))) document.body.append(find("#notices"));
}, true);

export const toast = (text, { fault = false } = {}) => {
  place();
  const notices = find("#notices");
  for (const old of all(".toast", notices)) if (find("p", old).textContent === text) old.remove();
  for (const old of all(".toast", notices).slice(0, 1 - MOST)) old.remove();
  const message = document.createElement("div");
  message.className = fault ? "toast fault" : "toast";
  const words = Object.assign(document.createElement("p"), { textContent: text });
  words.setAttribute("role", fault ? "alert" : "status");
  const button = Object.assign(document.createElement("button"), { type: "button", className: "link", textContent: "Dismiss" });
  button.addEventListener("click", () => message.remove());
  message.append(words, button);
  notices.append(message);
  if (fault) return;
  const leave = () => {
    if (message.matches(":hover, :focus-within")) setTimeout(leave, STAYS);
    else message.remove();
  };
  setTimeout(leave, STAYS);
};
