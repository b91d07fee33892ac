// What is said of an answer that has no place in the page: none came, or what asked has left the page meanwhile,
// with a dialog that was closed or a part that was renewed.
import { find } from "./dom.js";
import { isLive, isTriedAgain } from "./live.js";
import { toast } from "./toasts.js";

// The header says so if the page, or another table, could not be loaded; completions fail silently.
const noAnswer = (detail) => {
  if (isTriedAgain(detail) || isLive(detail)) return;
  const changes = detail.requestConfig.verb !== "get";
  toast(
    changes
      ? "The gateway did not answer: check whether it was done before you try again."
      : "The gateway cannot be reached.",
    { fault: true },
  );
};
for (const name of ["htmx:sendError", "htmx:timeout"]) {
  document.addEventListener(name, ({ detail }) => noAnswer(detail));
}

// htmx dispatches the events of an answer on the element that asked, so one that has left tells nobody.
const OF_FORMS = ["form-done", "form-fault"];
const tellThePage = (xhr) => {
  const events = JSON.parse(xhr.getResponseHeader("HX-Trigger") ?? "{}");
  for (const [name, value] of Object.entries(events)) {
    if (OF_FORMS.includes(name)) continue;
    htmx.trigger(document.body, name, typeof value === "object" ? value : { value });
  }
};
const answered = (detail) => {
  const { elt, xhr } = detail;
  if (xhr.status === 0) return noAnswer(detail);
  tellThePage(xhr);
  const elsewhere = xhr.getResponseHeader("HX-Retarget");
  const place = elsewhere ? find(elsewhere) : detail.target;
  if (xhr.status < 400 || place?.isConnected) return;
  const said = find("[role=alert]", new DOMParser().parseFromString(xhr.response, "text/html"));
  toast(said?.textContent ?? `The gateway answered ${xhr.status}.`, { fault: true });
  elt.addEventListener("htmx:beforeOnLoad", (event) => event.preventDefault(), { once: true });
};
document.addEventListener("htmx:beforeRequest", ({ detail }) => {
  const { elt, xhr } = detail;
  // Not `load`: by then htmx has read the answer, which may itself replace what asked.
  xhr.addEventListener("readystatechange", () => {
    if (xhr.readyState === XMLHttpRequest.DONE && !elt.isConnected) answered(detail);
  });
});
