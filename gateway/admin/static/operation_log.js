// The log of an operation as it comes: its last lines, which a person can search. Escapes are shown, not obeyed.
import { find } from "./dom.js";

const MOST = 5_000; // lines that are shown
const LONG = 4_000; // characters; a longer line goes on in the next
const AGAIN = 2_000;
// All that could control what is shown; the joiners of emoji and scripts are harmless.
const CONTROL = /(?![\t\u200c\u200d])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;

const section = find("[data-log]");
const lines = section && find("pre", section);
const search = section && find("[type=search]", section);
const follow = section && find("[type=checkbox]", section);
let open = null; // the line whose end has not come
let text = ""; // of that line
let left = false; // whether lines were left out
let place = "";
let ended = false;
let reading = null;

const escape = (char) => `\\u{${char.codePointAt(0).toString(16)}}`;
const show = (line, content) => {
  line.textContent = `${content.replace(/\r$/, "").replace(CONTROL, escape)}\n`;
  line.hidden = !line.textContent.toLowerCase().includes(search.value.toLowerCase());
};
const say = () => {
  const count = lines.childElementCount.toLocaleString("en");
  const found = [...lines.children].filter((line) => !line.hidden).length.toLocaleString("en");
  let said = left ? `The last ${count} lines are shown.` : count === "0" ? "Nothing has been logged yet." : `${count} lines.`;
  if (count === "0" && ended) said = "Nothing was logged.";
  find("[role=status]", section).textContent = search.value ? `${said} ${found} match.` : said;
  if (follow.checked) lines.scrollTop = lines.scrollHeight;
};
const add = (more) => {
  const all = (text + more).split("\n").flatMap((line) => line.match(new RegExp(`[^]{1,${LONG}}`, "gu")) ?? [""]);
  const shown = all.slice(-MOST - 1);
  left ||= shown.length < all.length;
  const made = document.createDocumentFragment();
  for (const [number, content] of shown.entries()) {
    if (number || !open) open = made.appendChild(document.createElement("span"));
    show(open, content);
  }
  text = shown.at(-1);
  lines.append(made);
  // After a line's end there is no line yet.
  if (!text) {
    open.remove();
    open = null;
  }
  while (lines.childElementCount > MOST) {
    lines.firstElementChild.remove();
    left = true;
  }
  say();
};

const take = (event) => {
  const fields = Object.fromEntries(event.map((line) => line.split(/: ?(.*)/s)));
  if (fields.event === "log") add(JSON.parse(fields.data).text);
  if (fields.id) place = fields.id;
  if (fields.event === "result") ended = true;
};
// Reads until the stream ends or fails; whether it makes sense to read again.
const read = async (signal) => {
  const headers = { "X-Live": "true", ...(place && { "Last-Event-ID": place }) };
  try {
    const answer = await fetch(section.dataset.log, { cache: "no-store", redirect: "error", headers, signal });
    if (!answer.ok) return answer.status >= 500 || answer.status === 429;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    let event = [];
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return true;
      const parts = (rest + value).split(/\r?\n/);
      rest = parts.pop();
      for (const line of parts) {
        if (line) event.push(line);
        else {
          take(event);
          event = [];
        }
      }
    }
  } catch {
    return true;
  }
};
const run = async () => {
  const attempt = new AbortController();
  reading = attempt;
  while (!attempt.signal.aborted && !ended && (await read(attempt.signal))) {
    if (!ended) await new Promise((resolve) => setTimeout(resolve, AGAIN * (0.5 + Math.random())));
  }
  if (reading === attempt) reading = null;
  say();
};

if (section) {
  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    for (const line of lines.children) line.hidden = !line.textContent.toLowerCase().includes(wanted);
    say();
  });
  follow.addEventListener("change", say);
  // Who scrolls up wants to read.
  lines.addEventListener("scroll", () => {
    if (lines.scrollTop + lines.clientHeight < lines.scrollHeight - 4) follow.checked = false;
  });
  // A hidden page reads nothing, and goes on where it was.
  const balance = () => {
    if (document.hidden) {
      reading?.abort();
      reading = null;
    } else if (!reading && !ended) run();
  };
  document.addEventListener("visibilitychange", balance);
  addEventListener("pagehide", () => reading?.abort());
  balance();
}
