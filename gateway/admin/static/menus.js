// The menu of a row: one popover for all rows, so that a renewal of the table leaves it open.
import { all, find } from "./dom.js";

let opener = null;
const items = (menu) => all("[role=menuitem]", menu).filter((item) => !item.hidden);
const place = (menu) => {
  const button = (document.getElementById(opener.id) || opener).getBoundingClientRect();
  const below = button.bottom + menu.offsetHeight < innerHeight;
  menu.style.top = `${below ? button.bottom : Math.max(0, button.top - menu.offsetHeight)}px`;
  menu.style.left = `${Math.max(0, button.right - menu.offsetWidth)}px`;
};
const fill = (menu, button) => {
  opener = button;
  const name = button.dataset.menu;
  const allowed = button.dataset.actions.split(" ");
  const main = button.previousElementSibling;
  // Where there is no room for the main action, it is in the menu.
  if (main && !main.offsetWidth) allowed.push(main.id.slice(0, -name.length - 1));
  for (const item of all("[data-action]", menu)) {
    item.hidden = !allowed.includes(item.dataset.action);
    item.setAttribute("aria-label", `${item.textContent.replace("…", "")} ${name}`);
  }
  find("[data-details]", menu).href = `ices/${encodeURIComponent(name)}`;
  menu.setAttribute("aria-label", `Actions for ${name}`);
};
document.addEventListener("click", (event) => {
  const menu = find("#row-menu");
  const button = event.target.closest("[data-menu]");
  const item = event.target.closest("#row-menu [data-action]");
  if (button) {
    fill(menu, button);
  } else if (item) {
    menu.hidePopover();
    const source = document.getElementById(opener.id) || opener;
    htmx.ajax("GET", `ices/${encodeURIComponent(source.dataset.menu)}/${item.dataset.action}`, { source, target: "#dialog" });
  }
});
document.addEventListener("toggle", (event) => {
  if (event.target.id !== "row-menu" || event.newState !== "open") return;
  place(event.target);
  items(event.target)[0].focus({ preventScroll: true });
}, true);
document.addEventListener("keydown", (event) => {
  const menu = event.target.closest?.("#row-menu");
  if (!menu || !["ArrowDown", "ArrowUp", "Home", "End", "Tab"].includes(event.key)) return;
  if (event.key === "Tab") {
    menu.hidePopover();
    document.getElementById(opener.id)?.focus();
    return;
  }
  event.preventDefault();
  const choices = items(menu);
  const at = choices.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
  const next = { Home: 0, End: -1 }[event.key] ?? at % choices.length;
  choices.at(next).focus();
});
for (const name of ["scroll", "resize"]) {
  addEventListener(name, () => {
    const menu = find("#row-menu:popover-open");
    if (menu) place(menu);
  }, { passive: true });
}
