// What HTML and htmx cannot do. No framework and no inline code, which the CSP forbids.
import "./answers.js";
import "./busy.js";
import { showChosen } from "./choice.js";
import { showDialog } from "./dialogs.js";
import { find } from "./dom.js";
import { ownerFollowsType, timeFollowsKind } from "./forms.js";
import { TIMEOUT, tableAddress } from "./live.js";
import "./operation_log.js";
import { localTimes, utcFields } from "./times.js";

// The form token of every request.
document.addEventListener("htmx:configRequest", (event) => {
  event.detail.headers["X-Form-Token"] = find("meta[name=form-token]").content;
  // The page asks by itself, not a person: such a request must not extend the login.
  if (["news", "look"].includes(event.detail.triggeringEvent?.type)) {
    event.detail.headers["X-Live"] = "true";
    event.detail.timeout = TIMEOUT;
  }
});
document.addEventListener("form-token", (event) => {
  find("meta[name=form-token]").content = event.detail.value;
});

// The table's address, which has the present filter and order.
document.addEventListener("htmx:configRequest", (event) => {
  const { elt, parameters } = event.detail;
  if (elt.id === "table") {
    // htmx reads hx-get only once.
    event.detail.path = tableAddress();
  } else if (elt.id === "filter") {
    const now = new URLSearchParams(find("[data-address]").dataset.address);
    for (const name of ["sort", "desc"]) if (now.has(name)) parameters[name] = now.get(name);
    for (const name of Object.keys(parameters)) if (!parameters[name]) delete parameters[name];
  }
});

document.addEventListener("click", (event) => {
  const skip = event.target.closest("[data-skip]");
  const provision = event.target.closest("[data-provision]");
  if (skip) {
    event.preventDefault();
    find("#main").focus();
  } else if (provision) {
    find("#ice_name").value = provision.dataset.provision;
    const user = find("#provisionedto");
    (user.disabled ? find("#ice_name") : user).focus();
  }
});
document.addEventListener("ices-changed", (event) => {
  if (event.target.id === "provision") find("#ice_name").value = "";
});

document.addEventListener("htmx:afterSwap", (event) => {
  localTimes(event.detail.target ?? event.target); // without `detail.target` when history is restored
  showChosen();
  timeFollowsKind();
  showDialog();
});
document.addEventListener("htmx:historyRestore", () => {
  localTimes(document);
  utcFields();
  showChosen();
});
// Such as when the login has ended: reload the whole page.
document.addEventListener("htmx:historyCacheMissLoadError", () => location.reload());
document.addEventListener("DOMContentLoaded", () => {
  localTimes(document);
  utcFields();
  ownerFollowsType();
  showChosen();
});
