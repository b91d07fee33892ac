// Provision the ICEs of a CSV file: the browser reads it, shows the preview, and sends it portion by portion.
import { all, find } from "./dom.js";

const MOST = 1_000_000; // bytes of the file as a form, below what the gateway takes
let csv = "";

// UTF-8, or UTF-16 with the mark that Windows programs write
const decode = (bytes) => {
  const [first, second] = bytes;
  const wide = first === 0xff && second === 0xfe ? "utf-16le" : first === 0xfe && second === 0xff ? "utf-16be" : null;
  return new TextDecoder(wide ?? "utf-8", { fatal: true }).decode(bytes);
};
const readFile = async (input) => {
  const [file] = input.files;
  input.value = ""; // so that the same file can be chosen again
  if (!file) return;
  const fault = find("[data-fleet-fault]");
  fault.textContent = "";
  try {
    csv = decode(new Uint8Array(await file.slice(0, MOST + 1).arrayBuffer()));
  } catch {
    fault.textContent = `${file.name} is neither UTF-8 nor UTF-16: save it as “CSV UTF-8”.`;
    return;
  }
  if (file.size > MOST || new URLSearchParams({ csv }).toString().length > MOST) {
    fault.textContent = `${file.name} is too large for one upload: split it.`;
    return;
  }
  htmx.ajax("POST", "fleet/check", { source: input, target: "#dialog", values: { csv } });
};
document.addEventListener("change", ({ target }) => {
  if (target.id === "fleet-file") readFile(target);
});

const portion = async (from, addUsers) => {
  const answer = await fetch("fleet", {
    method: "POST",
    headers: { "HX-Request": "true", "X-Form-Token": find("meta[name=form-token]").content },
    body: new URLSearchParams({ csv, from, ...(addUsers && { add_users: "on" }) }),
  });
  if (answer.ok) return answer.json();
  const refusal = new DOMParser().parseFromString(await answer.text(), "text/html");
  throw new Error(find("[role=alert]", refusal)?.textContent ?? `The gateway answered ${answer.status}.`);
};
const provision = async (form) => {
  const dialog = form.closest("dialog");
  const text = find("[data-progress-text]", dialog);
  const bar = find("[data-progress]", dialog);
  const refused = find("[data-refused]", dialog);
  const addUsers = form.elements.add_users?.checked ?? false;
  const tokens = [];
  const say = (fault) => {
    refused.hidden = false;
    refused.append(Object.assign(document.createElement("li"), { className: "fault", textContent: fault }));
  };
  dialog.dataset.issued = "";
  form.hidden = find("[data-preview]", dialog).hidden = true;
  bar.hidden = false;
  let next = 0;
  while (next !== null) {
    try {
      const answer = await portion(next, addUsers);
      for (const item of answer.items) {
        if (item.token) tokens.push(`${item.ice_name},${item.token}`);
        else say(`line ${item.line}: ${item.ice_name}: ${item.fault}`);
      }
      bar.max = answer.total || 1;
      bar.value = answer.next ?? answer.total;
      text.textContent = `${tokens.length.toLocaleString("en")} of ${answer.total.toLocaleString("en")} provisioned`;
      next = answer.next;
    } catch (error) {
      say(`${error.message} The ICEs from row ${next + 1} of the file on may have been provisioned; reprovision those that the list shows.`);
      next = null;
    }
  }
  htmx.trigger(document.body, "ices-changed", {});
  find("h2", dialog).textContent = `${tokens.length.toLocaleString("en")} ICE${tokens.length === 1 ? "" : "s"} provisioned`;
  bar.hidden = true;
  csv = "";
  if (tokens.length) {
    find("#token", dialog).value = ["ice_name,token", ...tokens, ""].join("\n");
    find("[data-ok]", dialog).hidden = false;
  } else {
    delete dialog.dataset.issued;
    for (const part of all("[type=submit], label", form)) part.remove();
    form.hidden = false;
    find("[data-close]", form).textContent = "Ok";
  }
  find("[data-ok]:not([hidden]), [data-close]", dialog).focus();
};
document.addEventListener("submit", (event) => {
  if (!event.target.matches("[data-fleet-form]")) return;
  event.preventDefault();
  provision(event.target);
});
