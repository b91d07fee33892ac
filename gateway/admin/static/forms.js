// Forms: fields that depend on another, refusals beside their field.
import { all, find } from "./dom.js";
import "./fleet.js";

// The provisioning form: only a normal ICE has a user
export const ownerFollowsType = () => {
  const owner = find("#owner");
  if (!owner) return;
  const normal = find("input[name=ice_type]:checked").value === "normal";
  owner.hidden = !normal;
  find("#provisionedto").disabled = !normal;
};

// The operation form: only a schedule has a time to run at
export const timeFollowsKind = () => {
  const time = find("#run-at");
  if (!time) return;
  time.hidden = find("#operation-kind").value !== "schedule";
  for (const input of [find("#operation-run_at"), find("#run-at-utc")]) input.disabled = time.hidden;
};
const noFault = (form) => {
  for (const input of all("[aria-invalid]", form)) input.removeAttribute("aria-invalid");
};
document.addEventListener("form-fault", (event) => {
  const field = event.detail.field && document.getElementById(event.detail.field);
  noFault(event.target);
  if (field) {
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }
});
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.matches("[data-form], #filter")) {
    find("#form-fault, #dialog-fault, #filter-fault", event.target)?.replaceChildren();
    noFault(event.target);
  }
});
// An error goes when its field changes.
document.addEventListener("input", ({ target }) => {
  if (!target.matches("[data-form] [aria-invalid]")) return;
  target.removeAttribute("aria-invalid");
  find("[aria-live=assertive]", target.closest("form")).replaceChildren();
});

// The panel that provisions
const showProvision = (shown) => {
  const panel = find("#provision-panel");
  const opener = find("[data-open-provision]");
  if (!panel || panel.hidden === !shown) return;
  panel.hidden = !shown;
  opener.hidden = shown;
  opener.setAttribute("aria-expanded", shown);
  (shown ? find("#ice_name") : opener).focus();
};
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-open-provision], [data-provision]")) showProvision(true);
  else if (event.target.closest("[data-close-provision]")) showProvision(false);
}, true); // before the field of a button that provisions is filled in
document.addEventListener("owner-added", () => {
  noFault(find("#provision"));
  find("#provision [type=submit]").focus();
});

// A new ICE is shown whatever the filter, until the person asks for something else.
let added = null;
document.addEventListener("ices-changed", (event) => {
  added = event.detail.new ?? added;
}, true); // before the table renews itself
document.addEventListener("htmx:configRequest", ({ detail: { elt, target, parameters } }) => {
  if (target?.id !== "table") return;
  if (elt.id !== "table") added = null;
  else if (added) parameters.new = added;
});
document.addEventListener("form-done", (event) => {
  event.target.reset();
  for (const box of all("[data-show]", event.target)) showPassword(box);
  find("input", event.target).focus();
});
const showPassword = (box) => {
  document.getElementById(box.dataset.show).type = box.checked ? "text" : "password";
};

// A table in a form, of which only the rows that are shown are chosen
const checkAll = (box) => {
  for (const each of all("tbody [type=checkbox]", box.form)) each.checked = box.checked;
};

// A link from another site comes without the login's cookie. Ask again from here: who is logged in goes on.
document.addEventListener("DOMContentLoaded", async () => {
  if (!find("form[action=login]") || find(".fault")) return;
  const answer = await fetch(location, { redirect: "manual" });
  if (answer.type === "opaqueredirect") location.replace(location);
});

document.addEventListener("change", (event) => {
  if (event.target.matches("input[name=ice_type]")) ownerFollowsType();
  else if (event.target.matches("#operation-kind")) timeFollowsKind();
  else if (event.target.matches("[data-check-all]")) checkAll(event.target);
  else if (event.target.matches("[data-show]")) showPassword(event.target);
});
