// Copies a text that the page shows.
import { find } from "./dom.js";

// Returns whether the text was copied; otherwise `select` has selected it.
export const copy = async (text, select) => {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without https or localhost there is no clipboard API: use the old command.
    select();
    return document.execCommand("copy");
  }
};
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy-text]");
  if (!button) return;
  const source = find(button.dataset.copyText);
  const done = await copy(source.textContent, () => getSelection().selectAllChildren(source));
  button.textContent = done ? "Copied" : "Press Ctrl+C";
  find("#copied").textContent = done ? "Copied." : "The text is selected: press Ctrl+C.";
});
