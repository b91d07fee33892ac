// What HTML and htmx cannot do: dialogs, copy and download, times in the viewer's zone, and keeping a
// choice while the table is renewed. No framework, no inline code (the CSP forbids it).
"use strict";
(() => {
  const find = (selector, inside = document) => inside.querySelector(selector);
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

  // --- the token that every change brings ---------------------------------------------------------
  document.addEventListener("htmx:configRequest", (event) => {
    event.detail.headers["X-Form-Token"] = find("meta[name=form-token]").content;
  });
  document.addEventListener("form-token", (event) => {
    find("meta[name=form-token]").content = event.detail.value;
  });

  // --- times in the viewer's zone, UTC on hover ------------------------------------------------------
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const localTimes = (inside) => {
    for (const time of all("time[datetime]", inside)) {
      time.textContent = format.format(new Date(time.dateTime));
    }
  };

  // --- the form: a user only for a normal ICE ---------------------------------------------------------
  const ownerFollowsType = () => {
    const owner = find("#owner");
    if (!owner) return;
    const normal = find("input[name=ice_type]:checked").value === "normal";
    owner.hidden = !normal;
    find("#provisionedto").disabled = !normal;
  };
  document.addEventListener("form-fault", (event) => {
    const field = event.detail.field && document.getElementById(event.detail.field);
    for (const input of all("#provision input")) input.removeAttribute("aria-invalid");
    if (field) {
      field.setAttribute("aria-invalid", "true");
      field.focus();
    }
  });
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.target.id === "provision") {
      find("#form-fault").replaceChildren();
      for (const input of all("#provision input")) input.removeAttribute("aria-invalid");
    }
  });

  // --- dialogs --------------------------------------------------------------------------------------
  let opener = null;
  const showDialog = () => {
    const dialog = find("#dialog dialog");
    if (!dialog || dialog.open) return;
    dialog.showModal();
    document.documentElement.classList.add("modal-is-open");
    dialog.addEventListener("cancel", (event) => {
      // Escape must not take a token away that is shown this once.
      if (dialog.hasAttribute("data-issued")) {
        event.preventDefault();
        askToClose(dialog);
      }
    });
    dialog.addEventListener("close", () => {
      document.documentElement.classList.remove("modal-is-open");
      const back = opener && (document.getElementById(opener.id) || opener);
      dialog.remove();
      if (back && back.isConnected) back.focus();
    });
  };
  const askToClose = (dialog) => {
    if (!find("[data-step=done]", dialog).hidden) return;
    find("[data-sure]", dialog).hidden = false;
    find("[data-ask]", dialog).hidden = true;
    find("[data-stay]", dialog).focus();
  };
  window.addEventListener("beforeunload", (event) => {
    if (find("dialog[data-issued]")) event.preventDefault();
  });

  const copy = async (field) => {
    try {
      await navigator.clipboard.writeText(field.value);
      return true;
    } catch {
      // Without https or localhost there is no clipboard API: select, and try the old way.
      field.focus();
      field.select();
      return document.execCommand("copy");
    }
  };
  const download = (field, name) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([field.value], { type: "text/plain" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button, [data-skip]");
    if (!button) return;
    const dialog = button.closest("dialog");
    if (button.matches("[data-skip]")) {
      event.preventDefault();
      find("#main").focus();
    } else if (button.matches("[data-close]")) {
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
      const done = await copy(find(button.dataset.copy, dialog));
      find("[data-said]", dialog).textContent = done
        ? "Copied."
        : "Your browser does not let a page copy: the token is selected, press Ctrl+C.";
    } else if (button.matches("[data-download]")) {
      download(find(button.dataset.download, dialog), button.dataset.filename);
      find("[data-said]", dialog).textContent = `Saved as ${button.dataset.filename}.`;
    } else if (button.matches("[data-provision]")) {
      find("#ice_name").value = button.dataset.provision;
      find("#provisionedto").focus();
    }
  });

  // --- choosing several ----------------------------------------------------------------------------
  const chosen = new Set();
  const showChosen = () => {
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
    } else if (event.target.matches("input[name=ice_type]")) {
      ownerFollowsType();
    }
  });

  // --- htmx ----------------------------------------------------------------------------------------
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.detail.target && event.detail.target.id === "dialog" && !event.target.closest("dialog")) {
      opener = event.detail.requestConfig.triggeringEvent?.submitter || event.target;
    }
  });
  document.addEventListener("htmx:beforeSwap", (event) => {
    // What cannot be put into a place (a login has ended, say) is said in a dialog.
    const { target, xhr } = event.detail;
    if (xhr.status >= 400 && target && target.hasAttribute("data-live")) {
      event.detail.shouldSwap = false;
      if (xhr.status === 401) event.detail.target = find("#dialog"), (event.detail.shouldSwap = !find("dialog[open]"));
    }
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    localTimes(event.detail.target);
    const form = find("#bulk");
    const table = find("#table");
    if (form && table && event.detail.target.id === "table") {
      table.setAttribute("hx-get", `./${form.dataset.address}`);
      for (const name of chosen) if (event.detail.xhr.status >= 400) chosen.delete(name);
    }
    showChosen();
    showDialog();
  });
  document.addEventListener("ices-changed", () => {
    if (find("#dialog dialog [data-step]") || find("#dialog .chosen")) chosen.clear();
    if (find("#provision")) find("#ice_name").value = "";
  });
  document.addEventListener("htmx:sendError", () => {
    find("#notices").textContent = "The gateway cannot be reached; nothing was changed.";
  });
  document.addEventListener("htmx:afterOnLoad", () => {
    find("#notices").textContent = "";
  });

  document.addEventListener("DOMContentLoaded", () => {
    localTimes(document);
    ownerFollowsType();
    showChosen();
  });
})();
