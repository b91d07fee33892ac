// The choice of ICEs for an action on many; it outlasts the table's pages.
import { all, find } from "./dom.js";

const chosen = new Set();
export const showChosen = () => {
  const boxes = all("#table input[name=ice_names]");
  for (const box of boxes) box.checked = chosen.has(box.value);
  const label = find("[data-chosen]");
  if (label) label.textContent = chosen.size ? `${chosen.size} chosen` : "None chosen";
  for (const button of all("[data-bulk]")) button.disabled = chosen.size === 0;
  const every = find("[data-choose-all]");
  if (every) every.checked = boxes.length > 0 && boxes.every((box) => box.checked);
};
document.addEventListener("change", (event) => {
  if (event.target.matches("[data-choose-all]")) {
    for (const box of all("#table input[name=ice_names]")) {
      event.target.checked ? chosen.add(box.value) : chosen.delete(box.value);
    }
    showChosen();
  } else if (event.target.matches("input[name=ice_names]")) {
    event.target.checked ? chosen.add(event.target.value) : chosen.delete(event.target.value);
    showChosen();
  }
});
document.addEventListener("htmx:configRequest", ({ detail: { elt, target, parameters } }) => {
  if (elt.matches("[data-bulk]") && target.id === "dialog") {
    parameters.ice_names = [...chosen]; // also from other pages of the table
  }
});
document.addEventListener("ices-changed", (event) => {
  // The event's target is the form that caused the change.
  if (event.target.matches("#dialog form[hx-post='ices/bulk']")) chosen.clear();
});
