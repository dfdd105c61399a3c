"use strict";
// Tables with rows that can be sorted by any column and filtered by class. Without this script they stay as written.
(() => {
  const value = (row, column) => {
    const text = row.cells[column].textContent;
    const number = Number(text.replace(/\u2212/g, "-"));
    return text === "\u2013" || text === "" ? null : Number.isNaN(number) ? text : number;
  };

  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });

  // Rows without a value stay last whichever way the others go; equal rows keep their order.
  const sort = (body, column, ascending) => {
    const rows = [...body.rows].map((row) => [row, value(row, column)]);
    rows.sort(([, a], [, b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return ascending ? compare(a, b) : compare(b, a);
    });
    body.append(...rows.map(([row]) => row));
  };

  const enhance = (box) => {
    const table = box.querySelector("table");
    const body = table.tBodies[0];
    const headings = [...table.tHead.rows[0].cells];
    const controls = document.createElement("div");
    const status = document.createElement("span");
    let order = "";
    controls.className = "controls";
    status.setAttribute("role", "status");

    const tell = () => {
      const shown = [...body.rows].filter((row) => !row.hidden).length;
      status.textContent = `${shown.toLocaleString("en")} rows shown${order}`;
    };

    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const ascending = heading.getAttribute("aria-sort") === "descending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sort(body, column, ascending);
        order = `, sorted by ${button.textContent}, ${ascending ? "lowest" : "highest"} first`;
        tell();
      });
    });

    if (box.dataset.classColumn !== "") {
      const column = Number(box.dataset.classColumn);
      const label = document.createElement("label");
      const choice = document.createElement("select");
      const names = new Set([...body.rows].map((row) => row.cells[column].textContent));
      choice.append(new Option("all classes", ""));
      [...names].sort(compare).forEach((name) => choice.append(new Option(name, `=${name}`)));
      choice.addEventListener("change", () => {
        for (const row of body.rows) {
          row.hidden = choice.value !== "" && `=${row.cells[column].textContent}` !== choice.value;
        }
        tell();
      });
      label.append("Label", choice);
      controls.append(label);
    }
    controls.append(status);
    box.prepend(controls);
    tell();
  };

  document.querySelectorAll(".sortable").forEach(enhance);
})();
