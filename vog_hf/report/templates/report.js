"use strict";
// Tables with rows that can be sorted by any column, searched and filtered by class, and pictures that open large.
// Without this script the page stays as written.
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
    const search = document.createElement("input");
    const choice = document.createElement("select");
    let order = "";
    controls.className = "controls";
    status.setAttribute("role", "status");

    const tell = () => {
      const shown = [...body.rows].filter((row) => !row.hidden).length;
      status.textContent = `${shown.toLocaleString("en")} rows shown${order}`;
    };

    const named = (text, field) => {
      const label = document.createElement("label");
      label.append(text, field);
      controls.append(label);
    };

    const others = box.querySelector(".others-switch");
    const isSearched = (cell) => cell.matches(others?.checked ? ".t" : ".t:not(.other)");

    const filter = () => {
      const wanted = search.value.trim().toLowerCase();
      for (const row of body.rows) {
        const ofClass = choice.value === "" || `=${row.cells[box.dataset.classColumn].textContent}` === choice.value;
        const has = (cell) => isSearched(cell) && cell.textContent.toLowerCase().includes(wanted);
        row.hidden = !ofClass || (wanted !== "" && ![...row.cells].some(has));
      }
      tell();
    };
    others?.addEventListener("change", filter);

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
      const names = new Set([...body.rows].map((row) => row.cells[column].textContent));
      choice.append(new Option("all classes", ""));
      [...names].sort(compare).forEach((name) => choice.append(new Option(name, `=${name}`)));
      choice.addEventListener("change", filter);
      named("Label", choice);
    }
    search.type = "search";
    search.addEventListener("input", filter);
    named("Search", search);
    controls.append(status);
    // A link to a row that is filtered out shows all rows again.
    const reveal = () => {
      const row = document.getElementById(location.hash.slice(1));
      if (!row?.hidden || !body.contains(row)) return;
      search.value = choice.value = "";
      filter();
      row.scrollIntoView();
    };
    window.addEventListener("hashchange", reveal);
    box.prepend(controls);
    tell();
  };

  const large = document.querySelector(".large");
  const open = (frame) => {
    const card = frame.closest(".card").cloneNode(true);
    const [shown, picture] = ["div", "div"].map((name) => document.createElement(name));
    shown.className = "card";
    picture.className = "pic";
    picture.style.cssText = card.querySelector(".pic").style.cssText;
    picture.append(...card.querySelector(".pic").childNodes);
    shown.append(picture, card.querySelector(".said"));
    large.lastElementChild.replaceChildren(shown);
    large.showModal();
  };

  const openable = (frame) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "frame";
    button.title = "Enlarge";
    button.append(...frame.childNodes);
    button.addEventListener("click", () => open(button));
    frame.replaceWith(button);
  };

  large.addEventListener("click", (event) => {
    if (event.target === large || event.target.closest("a, button")) large.close();
  });
  document.querySelectorAll(".frame").forEach(openable);
  document.querySelectorAll(".sortable").forEach(enhance);
})();
