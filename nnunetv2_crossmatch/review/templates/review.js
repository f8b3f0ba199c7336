"use strict";
document.documentElement.classList.add("js");
const table = document.querySelector(".review");
const body = table.tBodies[0];

function sortBy(heading) {
  const column = heading.cellIndex, order = heading.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
  const value = row => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, {numeric: true}) : x - y;
  };
  const known = [...body.rows].filter(row => value(row) !== ""), unknown = [...body.rows].filter(row => value(row) === "");
  known.sort((a, b) => (order === "ascending" ? 1 : -1) * compare(value(a), value(b)));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", order);
  body.append(...known, ...unknown);
}
for (const button of table.tHead.querySelectorAll("button"))
  button.addEventListener("click", () => sortBy(button.closest("th")));

const boxes = [...document.querySelectorAll("input[data-case]")];
const link = document.getElementById("download");
let made = null;

function ticked() {
  return [...new Set(boxes.filter(box => box.checked).map(box => box.dataset.case))].sort();
}
function tick(name, on) {
  for (const box of boxes) if (box.dataset.case === name) box.checked = on;
}
function refresh() {
  const names = ticked();
  document.getElementById("count").textContent = `${names.length} ticked`;
  link.setAttribute("aria-disabled", names.length === 0);
  if (made) URL.revokeObjectURL(made);
  made = names.length ? URL.createObjectURL(new Blob([names.join("\n") + "\n"], {type: "text/plain"})) : null;
  if (made) link.href = made; else link.removeAttribute("href");
}
for (const box of boxes) box.addEventListener("change", () => { tick(box.dataset.case, box.checked); refresh(); });
document.getElementById("suggested").addEventListener("click", () => {
  for (const box of document.querySelectorAll(".suggested input")) tick(box.dataset.case, true);
  refresh();
});
document.getElementById("none").addEventListener("click", () => { for (const box of boxes) box.checked = false; refresh(); });
refresh();
