"use strict";

/* Tables whose heads are buttons: a click sorts by the column, another one turns the order round. Without script the
   tables stand in the order in which they were written, and nothing pretends to be a control. */

const before = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));

function key(row, column) {
  const text = row.cells[column].dataset.order;
  if (text === undefined) return null;
  const value = Number(text);
  return text.trim() !== "" && Number.isFinite(value) ? value : text;
}

function sort(table, column, descending) {
  const rows = Array.from(table.tBodies[0].rows, (row) => ({row, value: key(row, column)}));
  rows.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
    return descending ? before(b.value, a.value) : before(a.value, b.value);
  });
  table.tBodies[0].append(...rows.map(({row}) => row));
}

function sortable(table) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.ariaSort ? head.ariaSort === "ascending" : head.classList.contains("number");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.ariaSort = descending ? "descending" : "ascending";
      sort(table, column, descending);
    });
  });
}

document.querySelectorAll("table[data-sortable]").forEach(sortable);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
