"use strict";

const collator = new Intl.Collator("en", { numeric: true });

/** What a row is sorted by; null where it has no value or NaN. */
function key(row, column, numeric) {
  const cell = row.cells[column];
  if (cell.classList.contains("none")) return null;
  if (!numeric) return cell.textContent;
  const value = Number(cell.dataset.value);
  return Number.isNaN(value) ? null : value;
}

/** The rows in order; rows without a value come last in either direction. */
function sorted(rows, column, numeric, order) {
  const sign = order === "descending" ? -1 : 1;
  const compare = numeric ? (a, b) => (a > b) - (a < b) : collator.compare;
  return rows
    .map((row) => [key(row, column, numeric), row])
    .sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * compare(a, b)))
    .map(([, row]) => row);
}

/** Clicks on a head: largest number or first word first, the reverse, the order as written. */
function makeSortable(table) {
  const body = table.tBodies[0];
  const asWritten = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const numeric = head.dataset.kind === "number";
    const orders = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
    head.querySelector("button").addEventListener("click", () => {
      const order = orders[orders.indexOf(head.getAttribute("aria-sort")) + 1];
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      if (order) head.setAttribute("aria-sort", order);
      body.append(...(order ? sorted(asWritten, column, numeric, order) : asWritten));
    });
  });
}

document.querySelectorAll("table").forEach(makeSortable);

// A closed <details> would be missing on paper.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((each) => (each.open = true));
});
addEventListener("afterprint", () => opened.forEach((each) => (each.open = false)));
