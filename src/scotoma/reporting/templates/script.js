"use strict";
// Tables sort by their headings; each press turns the order round. Undefined values stay at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      const numeric = head.classList.contains("number");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
        return falling ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
// The boxes above a gallery show and hide its outlines.
for (const box of document.querySelectorAll("input[data-hides]")) {
  box.addEventListener("change", () => {
    box.closest("[data-outlines]").classList.toggle("hide-" + box.dataset.hides, !box.checked);
  });
}
// What is folded on the screen is unfolded on paper.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) {
    part.open = true;
    part.dataset.wasFolded = "";
  }
});
addEventListener("afterprint", () => {
  for (const part of document.querySelectorAll("details[data-was-folded]")) {
    part.open = false;
    delete part.dataset.wasFolded;
  }
});
