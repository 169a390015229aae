"use strict";
// A click on a heading sorts by its column: upwards, downwards, then as it was.
const number = (text) => {
  const found = text.replace(/,/g, "").match(/^[-+]?\d*\.?\d+(e[-+]?\d+)?(?=$|[\s%])/i);
  return found ? Number(found[0]) : NaN;
};
const compare = (a, b) => {
  const x = number(a), y = number(b);
  if (!isNaN(x) && !isNaN(y)) return x - y;
  return a.localeCompare(b, "en", { numeric: true });
};
const empty = (text) => text === "" || text === "-" || text === "–";
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0];
  if (!body) continue;
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const value = (row) => row.cells[column].title || row.cells[column].textContent.trim();
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const order = { ascending: "descending", descending: null }[before];
      const next = before ? order : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      const sign = next === "descending" ? -1 : 1;
      const sorted = !next ? rows : [...rows].sort((one, two) => {
        const a = value(one), b = value(two);
        if (empty(a) || empty(b)) return empty(a) - empty(b);
        return sign * compare(a, b);
      });
      body.append(...sorted);
    });
  });
}
