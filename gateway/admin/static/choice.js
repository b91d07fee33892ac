// The choice of ICEs for an action on many; it outlasts the table's pages, and a look at another page.
import { busy, isBusy } from "./busy.js";
import { showDialog } from "./dialogs.js";
import { all, find } from "./dom.js";
import "./menus.js";
import { toast } from "./toasts.js";

const KEPT = "chosen";
const LISTED = 500; // names that are shown
const chosen = new Set(JSON.parse(sessionStorage.getItem(KEPT) || "[]"));
const keep = () => sessionStorage.setItem(KEPT, JSON.stringify([...chosen]));
const number = (count) => count.toLocaleString("en");

export const showChosen = () => {
  const boxes = all("#table input[name=ice_names]");
  for (const box of boxes) box.checked = chosen.has(box.value);
  const every = find("[data-choose-all]");
  if (!every) return;
  every.checked = boxes.length > 0 && boxes.every((box) => box.checked);
  every.indeterminate = !every.checked && boxes.some((box) => box.checked);
  find(".bulk-row").hidden = chosen.size === 0;
  find("[data-chosen]").textContent = chosen.size ? `${number(chosen.size)} chosen` : "None chosen";
  const total = Number(find("[data-total]").dataset.total);
  find("[data-choose-matching]").hidden = !every.checked || chosen.size >= total;
};
const change = (names, add) => {
  for (const name of names) add ? chosen.add(name) : chosen.delete(name);
  keep();
  showChosen();
  const status = find("#found");
  if (status) status.textContent = `${number(chosen.size)} chosen`;
};
document.addEventListener("change", ({ target }) => {
  if (target.matches("[data-choose-all]")) {
    change(all("#table input[name=ice_names]").map((box) => box.value), target.checked);
  } else if (target.matches("#table input[name=ice_names]")) {
    change([target.value], target.checked);
  }
});
document.addEventListener("click", ({ target }) => {
  if (target.closest("[data-clear-chosen]")) {
    change([...chosen], false);
    find("#choose-all").focus();
  } else if (target.closest("[data-choose-matching]")) {
    chooseMatching(target);
  } else if (target.closest("[data-show-chosen]")) {
    list(target);
  } else if (target.closest("[data-unchoose]")) {
    const item = target.closest("li");
    (find("button", item.nextElementSibling ?? item.previousElementSibling ?? item.closest("article")) ?? target).focus();
    item.remove();
    change([target.dataset.unchoose], false);
  }
});
const chooseMatching = async (source) => {
  if (isBusy(source)) return;
  busy(source, true);
  try {
    const address = find("[data-address]").dataset.address;
    const answer = await fetch(`ice-names${address}`, { headers: { "HX-Request": "true" } });
    if (answer.ok) return change(await answer.json(), true);
    find("#dialog").innerHTML = await answer.text();
    showDialog(source);
  } catch {
    toast("The gateway cannot be reached.", { fault: true });
  } finally {
    busy(source, false);
  }
};

// The names, with a button beside each that takes it out again
const list = (source) => {
  const dialog = find("#chosen-list").content.cloneNode(true);
  const names = [...chosen].sort();
  find("h2", dialog).textContent = `${number(names.length)} chosen`;
  find("ul", dialog).append(
    ...names.slice(0, LISTED).map((name) => {
      const item = document.createElement("li");
      const link = document.createElement("a");
      const button = document.createElement("button");
      link.href = `ices/${encodeURIComponent(name)}`;
      link.textContent = name;
      Object.assign(button, { type: "button", className: "link", textContent: "Remove" });
      button.setAttribute("aria-label", `Remove ${name}`);
      button.dataset.unchoose = name;
      item.append(link, " ", button);
      return item;
    }),
  );
  find("[data-more]", dialog).textContent =
    names.length > LISTED ? `and ${number(names.length - LISTED)} more` : "";
  find("#dialog").replaceChildren(dialog);
  showDialog(source);
};

// A bulk action names what is chosen, also on other pages of the table; what was asked about is what is sent.
let asked = [];
document.addEventListener("htmx:configRequest", ({ detail: { elt, path, parameters } }) => {
  if (path === "ices/bulk/confirm") {
    asked = elt.matches("[data-bulk]") ? [...chosen] : [parameters.ice_names ?? []].flat();
  }
  if (elt.matches("[data-bulk], [data-bulk-form]")) parameters.ice_names = asked;
});
document.addEventListener("ices-changed", ({ target }) => {
  // The event's target is the form that caused the change.
  if (target.matches("[data-bulk-form]")) change(asked, false);
});
// The next person in this tab does not see what was chosen before.
document.addEventListener("DOMContentLoaded", () => {
  if (find("form[action=login]")) sessionStorage.removeItem(KEPT);
});
