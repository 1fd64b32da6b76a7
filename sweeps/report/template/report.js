"use strict";
// Sorts the table of trials by the column whose heading is activated; without script it is sorted by rank.
const table = document.getElementById("trials");
const body = table.tBodies[0];
const key = (row, column) => {
  const cell = row.cells[column];
  const text = cell.dataset.v ?? cell.textContent;
  const value = Number(text);
  return text === "" || text === "–" ? null : Number.isNaN(value) ? text : value;
};
const compare = (a, b) =>
  typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
const sort = (heading, column) => {
  const down = heading.getAttribute("aria-sort") === "ascending";
  const rows = Array.from(body.rows, (row) => [key(row, column), row]);
  const [full, empty] = [rows.filter(([k]) => k !== null), rows.filter(([k]) => k === null)];
  full.sort(([a], [b]) => (down ? compare(b, a) : compare(a, b)));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...full.concat(empty).map(([, row]) => row));
};
Array.from(table.tHead.rows[0].cells).forEach((heading, column) => {
  const button = document.createElement("button");
  button.textContent = heading.textContent;
  button.addEventListener("click", () => sort(heading, column));
  heading.replaceChildren(button);
});
