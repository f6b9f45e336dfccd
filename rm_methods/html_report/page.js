"use strict";
// The page is complete without this: all columns are shown one below the other, and the table in its own order.
document.querySelectorAll(".tabs").forEach((tabs) => {
  const buttons = [...tabs.querySelectorAll("button")];
  const show = (chosenButton) => {
    buttons.forEach((button) => {
      const isShown = button === chosenButton;
      button.setAttribute("aria-selected", String(isShown));
      document.getElementById(button.dataset.panel).hidden = !isShown;
    });
  };
  buttons.forEach((button) => button.addEventListener("click", () => show(button)));
  tabs.hidden = false;
  show(buttons[0]);
});
document.querySelectorAll("table.sortable").forEach((table) => {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const sortBy = (column, heading) => {
    const isDescending = heading.getAttribute("aria-sort") !== "descending" && column > 0
      || column === 0 && heading.getAttribute("aria-sort") === "ascending";
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.key;
    const rows = [...body.rows];
    rows.sort((first, second) => {
      if (column === 0) return (isDescending ? -1 : 1) * key(first).localeCompare(key(second));
      const [a, b] = [Number.parseFloat(key(first)), Number.parseFloat(key(second))];
      // Rows without a number come last in both directions.
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
      return isDescending ? b - a : a - b;
    });
    body.append(...rows);
  };
  headings.forEach((heading, column) => {
    heading.tabIndex = 0;
    heading.addEventListener("click", () => sortBy(column, heading));
    heading.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sortBy(column, heading);
    });
  });
});
// Paper has no clicks: the notes of the table are printed.
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details.notes").forEach((details) => { details.open = true; });
});
