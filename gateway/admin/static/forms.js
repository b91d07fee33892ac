// Forms: fields that depend on another, refusals beside their field.
import { all, find } from "./dom.js";


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
  if (event.target.matches("[data-form]")) {
    find("[aria-live=assertive]", event.target).replaceChildren();
    noFault(event.target);
  }
});
document.addEventListener("form-done", (event) => {
  event.target.reset();
  for (const box of all("[data-show]", event.target)) showPassword(box);
  find("input", event.target).focus();
});
const showPassword = (box) => {
  document.getElementById(box.dataset.show).type = box.checked ? "text" : "password";
};

document.addEventListener("change", (event) => {
  if (event.target.matches("input[name=ice_type]")) ownerFollowsType();
  else if (event.target.matches("#operation-kind")) timeFollowsKind();
  else if (event.target.matches("[data-show]")) showPassword(event.target);
});
