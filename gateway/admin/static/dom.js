// Queries of the document, and where the focus goes.
export const find = (selector, inside = document) => inside.querySelector(selector);
export const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

// Where the focus goes when the focused element has been removed.
export const focusNear = (gone) => {
  const row = gone.closest("tr[id]");
  const place = row && document.getElementById(row.id);
  const next = (place && find("a, button", place)) || (gone.closest("#bulk") && find("#choose-all"));
  (next || find("#main")).focus();
};
