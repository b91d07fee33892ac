// What HTML and htmx cannot do: dialogs, copy and download, times in the viewer's time zone, and keeping
// a selection while the table reloads. No framework and no inline code, which the CSP forbids.
"use strict";
(() => {
  const find = (selector, inside = document) => inside.querySelector(selector);
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

  // --- the form token of every request ------------------------------------------------------------
  document.addEventListener("htmx:configRequest", (event) => {
    event.detail.headers["X-Form-Token"] = find("meta[name=form-token]").content;
    // The page asks by itself, not a person: such a request must not extend the login.
    if (["news", "look"].includes(event.detail.triggeringEvent?.type)) event.detail.headers["X-Live"] = "true";
  });
  document.addEventListener("form-token", (event) => {
    find("meta[name=form-token]").content = event.detail.value;
  });

  // --- news: reload what has changed ----------------------------------------------------------------
  // At once, then at most twice a second; the last change is always loaded.
  const PAUSE = 500;
  let reloadedAt = -PAUSE;
  let timer = null;
  const reload = () => {
    timer = null;
    reloadedAt = performance.now();
    htmx.trigger(document.body, "news");
  };
  const news = () => {
    timer ??= setTimeout(reload, Math.max(0, reloadedAt + PAUSE - performance.now()));
  };
  for (const name of ["sse:message", "sse:presence", "sse:reset"]) document.addEventListener(name, news);
  // Load what changed before the stream was open, or while it was lost.
  document.addEventListener("htmx:sseOpen", news);
  // Repeat a failed reload: if the stream did not break, nothing else would trigger it.
  const retryNews = ({ detail }) => {
    if ("X-Live" in detail.requestConfig.headers) news();
  };
  document.addEventListener("htmx:sendError", retryNews);
  document.addEventListener("htmx:afterOnLoad", (event) => {
    if (event.detail.xhr.status >= 500) retryNews(event);
  });

  // The log has no events for an operation's progress or a node's state, so the page polls them.
  const poll = (id, pause, condition) => {
    setInterval(() => {
      if (!document.hidden && find(condition)) htmx.trigger(`#${id}`, "look");
    }, pause);
  };
  poll("live", 1000, "#live [data-unfinished]");
  poll("table", 5000, "#table[data-changing]");

  // --- times in the viewer's time zone, UTC on hover -------------------------------------------------
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const localTimes = (inside) => {
    for (const time of all("time[datetime]", inside)) {
      time.textContent = format.format(new Date(time.dateTime));
    }
  };

  // --- the provisioning form: only a normal ICE has a user ---------------------------------------------
  const ownerFollowsType = () => {
    const owner = find("#owner");
    if (!owner) return;
    const normal = find("input[name=ice_type]:checked").value === "normal";
    owner.hidden = !normal;
    find("#provisionedto").disabled = !normal;
  };
  // --- the operation form: only a schedule has a time to run at -----------------------------------------
  const timeFollowsKind = () => {
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

  // --- times in forms: typed in the viewer's time zone, sent in UTC -----------------------------------
  const utcFields = () => {
    for (const box of all("[data-utc]")) {
      const moment = new Date(document.getElementById(box.dataset.utc).value);
      if (isNaN(moment)) continue;
      const local = new Date(moment - moment.getTimezoneOffset() * 60000);
      box.value = local.toISOString().slice(0, 19);
    }
  };
  const sendUtc = (event) => {
    if (!event.target.matches("[data-utc]")) return;
    const moment = new Date(event.target.value);
    document.getElementById(event.target.dataset.utc).value = isNaN(moment)
      ? ""
      : moment.toISOString();
  };
  document.addEventListener("input", sendUtc, true); // before htmx reads the form

  // --- dialogs --------------------------------------------------------------------------------------
  let opener = null;
  const showDialog = () => {
    const dialog = find("#dialog dialog");
    if (!dialog || dialog.open) return;
    dialog.showModal();
    document.documentElement.classList.add("modal-is-open");
    dialog.addEventListener("close", () => {
      document.documentElement.classList.remove("modal-is-open");
      dialog.remove();
      if (dialog.hasAttribute("data-login-ended")) news(); // renews the form token
      const back = opener && (document.getElementById(opener.id) || opener);
      if (back && back.isConnected && !back.disabled) back.focus();
      else if (opener) focusNear(opener);
    });
  };
  // Where the focus goes when the focused element has been removed.
  const focusNear = (gone) => {
    const row = gone.closest("tr[id]");
    const place = row && document.getElementById(row.id);
    const next = (place && find("a, button", place)) || (gone.closest("#bulk") && find("#choose-all"));
    (next || find("#main")).focus();
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

  const copy = async (field) => {
    try {
      await navigator.clipboard.writeText(field.value);
      return true;
    } catch {
      // Without https or localhost there is no clipboard API: select the text and use the old command.
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
        : "Your browser does not allow the page to copy: the token is selected, press Ctrl+C.";
    } else if (button.matches("[data-download]")) {
      download(find(button.dataset.download, dialog), button.dataset.filename);
      find("[data-said]", dialog).textContent = `Saved as ${button.dataset.filename}.`;
    } else if (button.matches("[data-provision]")) {
      find("#ice_name").value = button.dataset.provision;
      const user = find("#provisionedto");
      (user.disabled ? find("#ice_name") : user).focus();
    }
  });

  // --- choosing ICEs for a bulk action -------------------------------------------------------------
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
    } else if (event.target.matches("#operation-kind")) {
      timeFollowsKind();
    } else if (event.target.matches("[data-show]")) {
      showPassword(event.target);
    }
  });

  // --- htmx ----------------------------------------------------------------------------------------
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.detail.target && event.detail.target.id === "dialog" && !event.target.closest("dialog")) {
      opener = event.detail.requestConfig.triggeringEvent?.submitter || event.target;
    }
  });
  document.addEventListener("htmx:configRequest", (event) => {
    const { elt, target, parameters } = event.detail;
    if (elt.id === "table") {
      // The present filter and order; htmx reads hx-get only once.
      event.detail.path = `./${find("[data-address]").dataset.address}`;
    } else if (elt.id === "filter") {
      const now = new URLSearchParams(find("[data-address]").dataset.address);
      for (const name of ["sort", "desc"]) if (now.has(name)) parameters[name] = now.get(name);
      for (const name of Object.keys(parameters)) if (!parameters[name]) delete parameters[name];
    } else if (elt.matches("[data-bulk]") && target.id === "dialog") {
      parameters.ice_names = [...chosen]; // also from other pages of the table
    }
  });

  // Live parts reload by themselves, but not while a button is pressed or when nothing has changed.
  const shown = new WeakMap();
  let pressed = false;
  let missed = false;
  let focused = null;
  document.addEventListener("pointerdown", (event) => {
    pressed = event.button === 0 && event.target.closest("[data-live]") !== null;
  }, true);
  for (const name of ["pointerup", "pointercancel"]) {
    document.addEventListener(name, () => {
      pressed = false;
      if (missed) news();
      missed = false;
    }, true);
  }
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { target, xhr, requestConfig } = event.detail;
    if (!target || !target.hasAttribute("data-live")) return;
    const automatic = requestConfig.elt === target;
    if (xhr.status >= 400) {
      // An error does not replace the live part; a dialog shows it.
      const show = !find("dialog[open]") && (!automatic || xhr.status === 401);
      if (show) event.detail.target = find("#dialog");
      event.detail.shouldSwap = show;
      return;
    }
    if (automatic) {
      const old = target.id === "table" && requestConfig.path !== `./${find("[data-address]").dataset.address}`;
      if (old || pressed) {
        event.detail.shouldSwap = false;
        missed = pressed;
        if (!pressed) news();
        return;
      }
      if (shown.get(target) === xhr.response) {
        event.detail.shouldSwap = false;
        return;
      }
    }
    shown.set(target, xhr.response);
    focused = target.contains(document.activeElement) ? document.activeElement : null;
    const region = find("[role=region]", target);
    target.dataset.scrolled = region ? region.scrollLeft : 0;
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    const target = event.detail.target ?? event.target; // without `detail.target` when history is restored
    localTimes(target);
    showChosen();
    timeFollowsKind();
    showDialog();
    if (target.dataset.scrolled > 0) find("[role=region]", target).scrollLeft = target.dataset.scrolled;
    if (focused && document.activeElement === document.body) focusNear(focused);
    focused = null;
  });
  document.addEventListener("ices-changed", (event) => {
    // The event's target is the form that caused the change.
    if (event.target.matches("#dialog form[hx-post='ices/bulk']")) chosen.clear();
    if (event.target.id === "provision") find("#ice_name").value = "";
  });
  document.addEventListener("htmx:historyRestore", () => {
    localTimes(document);
    utcFields();
    showChosen();
  });
  // Such as when the login has ended: reload the whole page.
  document.addEventListener("htmx:historyCacheMissLoadError", () => location.reload());
  document.addEventListener("htmx:sendError", (event) => {
    find("#notices").textContent =
      event.detail.requestConfig.verb === "get"
        ? "The gateway cannot be reached."
        : "The gateway did not answer: check whether it was done before you try again.";
  });
  document.addEventListener("htmx:afterOnLoad", () => {
    find("#notices").textContent = "";
  });

  document.addEventListener("DOMContentLoaded", () => {
    localTimes(document);
    utcFields();
    ownerFollowsType();
    showChosen();
  });
})();
