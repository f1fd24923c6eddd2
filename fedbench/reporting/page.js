// The page's table to sort, its switches, and the answer to a reader's budgets. Names reach the page as text only.
"use strict";

// The first click on a head puts the best first, the next one the other end; what has no figure stays last.
function sortBy(head) {
  const table = head.closest("table"), body = table.tBodies[0], at = head.cellIndex;
  const best = head.dataset.best;
  const other = best === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === best ? other : best;
  const sign = order === "ascending" ? 1 : -1;
  const figures = "figure" in head.dataset;
  const key = (row) => row.cells[at].dataset.order;
  const compare = (a, b) => (figures ? Number(key(a)) - Number(key(b)) : key(a).localeCompare(key(b)));
  const rows = [...body.rows].sort((a, b) => {
    const missing = (key(a) === "") - (key(b) === "");
    return missing || sign * compare(a, b);
  });
  for (const one of head.parentNode.cells) one.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  body.append(...rows);
}

function show(name, visible) {
  for (const chart of Bokeh.documents.flatMap((one) => one.roots())) {
    for (const drawn of chart.renderers) if (drawn.name === name) drawn.visible = visible;
  }
}

// As `best_within` of iso_budget.py: the highest mean within the budgets, and what no interval separates from it.
function recommend(choices, limits) {
  const fits = (row) => limits.every(([field, limit]) => row.costs[field] !== null && row.costs[field] <= limit);
  const within = choices.rows.filter(fits);
  if (within.length === 0) return "No row above the floor is within these budgets.";
  const best = within.reduce((a, b) => (b.mean > a.mean ? b : a));
  const worse = best.better_than.map((at) => choices.rows[at]);
  const like = within.filter((row) => row !== best && !worse.includes(row));
  const words = (row) => `${row.name} (${row.top1} %)`;
  const rest = like.length ? ` No interval separates it from: ${like.map(words).join(", ")}.` : "";
  return `${words(best)} has the highest mean of ${within.length} row(s) within.${rest}`;
}

function answer(form) {
  const choices = JSON.parse(form.querySelector("script").textContent);
  const limits = [...form.querySelectorAll("input")].map((one) => [one.name, one.valueAsNumber]);
  const asked = limits.filter(([, limit]) => !Number.isNaN(limit));
  form.querySelector("output").textContent = recommend(choices, asked);
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.parentNode));
}
for (const box of document.querySelectorAll(".key input")) {
  box.addEventListener("change", () => show(box.name, box.checked));
}
for (const form of document.querySelectorAll("form")) {
  form.addEventListener("input", () => answer(form));
  form.addEventListener("submit", (event) => event.preventDefault());
  answer(form);
}
