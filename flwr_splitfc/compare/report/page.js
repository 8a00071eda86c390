for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const down = head.getAttribute("aria-sort") !== "descending", body = head.closest("table").tBodies[0];
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[head.cellIndex].dataset.key;
  const order = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
  const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * order(key(a), key(b)));
  body.append(...rows);
});
