"use strict";
// A click on a column's head sorts its table: best first by number, then the other way; cells without a value stay last.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const descending = head.ariaSort ? head.ariaSort === "ascending" : head.classList.contains("number");
    for (const other of heads) other.removeAttribute("aria-sort");
    head.ariaSort = descending ? "descending" : "ascending";
    const sign = descending ? -1 : 1;
    const rows = [...body.rows].map((row) => [row.cells[column].dataset.sort, row]);
    rows.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    });
    body.append(...rows.map(([, row]) => row));
  }));
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
