// Times: shown in the viewer's time zone, with UTC on hover; typed in it, and sent in UTC.
import { all } from "./dom.js";

const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
export const localTimes = (inside) => {
  for (const time of all("time[datetime]", inside)) {
    time.textContent = format.format(new Date(time.dateTime));
  }
};

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
