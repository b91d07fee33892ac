// What a request is under way for says so, and asks for nothing more until it is answered.
const place = (elt) => (elt.matches("button") ? elt : elt.matches("[type=file]") && elt.closest("label")) || null;

export const isBusy = (elt) => place(elt)?.getAttribute("aria-busy") === "true";
export const busy = (elt, now) => {
  if (now) place(elt)?.setAttribute("aria-busy", true);
  else place(elt)?.removeAttribute("aria-busy");
};
// Before htmx queues a second request behind the first
document.addEventListener("htmx:confirm", (event) => {
  if (isBusy(event.detail.elt)) event.preventDefault();
});
document.addEventListener("htmx:beforeRequest", ({ detail: { elt } }) => busy(elt, true));
document.addEventListener("htmx:afterRequest", ({ detail: { elt } }) => busy(elt, false));
