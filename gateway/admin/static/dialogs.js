// Dialogs: open and close them, keep the focus, copy and download what is shown once.
import { copy } from "./copy.js";
import { find, focusNear } from "./dom.js";
import { news } from "./live.js";
import { toast } from "./toasts.js";

let opener = null;
export const showDialog = (source) => {
  const dialog = find("#dialog dialog");
  if (!dialog || dialog.open) return;
  opener = source ?? opener;
  dialog.showModal();
  document.documentElement.classList.add("modal-is-open");
  dialog.addEventListener("close", () => {
    document.documentElement.classList.remove("modal-is-open");
    dialog.remove();
    if (dialog.hasAttribute("data-login-ended")) news(); // renews the form token
    // The browser gave the focus back before this event: a menu may have been opened since.
    if (find("#row-menu:popover-open")) return;
    const back = opener && (document.getElementById(opener.id) || opener);
    if (back && back.checkVisibility() && !back.disabled) back.focus();
    else if (opener) focusNear(opener);
  });
};
// Escape must not close a dialog whose token is shown only once. The page catches the key, since a
// browser lets it prevent `cancel` only once.
document.addEventListener("keydown", (event) => {
  const dialog = event.key === "Escape" && find("dialog[data-issued]");
  if (dialog) {
    event.preventDefault();
    askToClose(dialog);
  }
});
const askToClose = (dialog) => {
  if (!find("[data-step=done]", dialog).hidden) return;
  find("[data-sure]", dialog).hidden = false;
  find("[data-ask]", dialog).hidden = true;
  find("[data-stay]", dialog).focus();
};
window.addEventListener("beforeunload", (event) => {
  if (find("dialog[data-issued]")) event.preventDefault();
});

const download = (field, name) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([field.value], { type: "text/plain" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

document.addEventListener("click", async (event) => {
  const button = event.target.closest("dialog button");
  if (!button) return;
  const dialog = button.closest("dialog");
  if (button.matches("[data-close]")) {
    dialog.close();
  } else if (button.matches("[data-ok]")) {
    find("[data-step=done]", dialog).hidden = true;
    find("[data-step=token]", dialog).hidden = false;
    dialog.setAttribute("aria-labelledby", "token-title");
    find("#token-title", dialog).focus();
  } else if (button.matches("[data-ask]")) {
    askToClose(dialog);
  } else if (button.matches("[data-stay]")) {
    find("[data-sure]", dialog).hidden = true;
    find("[data-ask]", dialog).hidden = false;
    find("[data-ask]", dialog).focus();
  } else if (button.matches("[data-copy]")) {
    const field = find(button.dataset.copy, dialog);
    const done = await copy(field.value, () => {
      field.focus();
      field.select();
    });
    find("[data-said]", dialog).textContent = done
      ? "Copied."
      : "Your browser does not allow the page to copy: the text is selected, press Ctrl+C.";
  } else if (button.matches("[data-download]")) {
    download(find(button.dataset.download, dialog), button.dataset.filename);
    find("[data-said]", dialog).textContent = `Saved as ${button.dataset.filename}.`;
  }
});

document.addEventListener("toast", ({ target, detail }) => {
  target.closest("dialog")?.close();
  toast(detail.sentence);
});

document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.detail.target && event.detail.target.id === "dialog" && !event.target.closest("dialog")) {
    opener = event.detail.requestConfig.triggeringEvent?.submitter || event.target;
  }
});
