// Times: shown in the viewer's time zone, with UTC on hover; typed in it, and sent in UTC.
import { all } from "./dom.js";

const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const UNITS = [["s", 60], ["min", 60], ["h", 24], ["d", 60]];
// "3 min ago", or the date when that is long past; a clock that is a little off makes no future.
const ago = (moment) => {
  let count = Math.max(0, (Date.now() - moment) / 1000);
  if (count < 10) return "just now";
  for (const [unit, size] of UNITS) {
    if (count < size) return `${Math.floor(count)} ${unit} ago`;
    count /= size;
  }
  return day.format(moment);
};
export const localTimes = (inside) => {
  for (const time of all("time[datetime]", inside)) {
    const moment = new Date(time.dateTime);
    if ("ago" in time.dataset) {
      time.textContent = ago(moment);
      time.title = `${format.format(moment)} (${moment.toISOString().slice(0, 19).replace("T", " ")} UTC)`;
    } else {
      time.textContent = format.format(moment);
    }
  }
};
// Only what has changed is written: a selection in the table stays.
setInterval(() => {
  for (const time of all("time[data-ago]")) {
    const text = ago(new Date(time.dateTime));
    if (time.textContent !== text) time.textContent = text;
  }
}, 10_000);

export const utcFields = () => {
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
