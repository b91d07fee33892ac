// Copies a text that the page shows.
import { find } from "./dom.js";

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy-text]");
  if (!button) return;
  const source = find(button.dataset.copyText);
  let done = true;
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    // Without https or localhost there is no clipboard API: select the text and use the old command.
    getSelection().selectAllChildren(source);
    done = document.execCommand("copy");
  }
  button.textContent = done ? "Copied" : "Press Ctrl+C";
  find("#copied").textContent = done ? "Copied." : "The text is selected: press Ctrl+C.";
});
