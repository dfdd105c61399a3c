// The grid of rows, for quick passes: select several, decide about all of them at once. Runs before review.js, which it
// shares everything with.
let grid = {at: 0, left: 0, last: "", rows: []};
let batch = []; // ids of the decisions that were written last, which Undo takes back together
let anchor = null; // tile that a range begins at

const inGrid = () => root.dataset.view === "grid";
const tiles = () => [...part("tiles").querySelectorAll("[data-tile]")];
const isChosen = (tile) => tile.getAttribute("aria-pressed") === "true";
const chosenRows = () => tiles().filter(isChosen).map((tile) => Number(tile.dataset.tile));

function select(some, on) {
  for (const tile of some) tile.setAttribute("aria-pressed", on);
  const count = chosenRows().length;
  part("selected").textContent = `${count} selected`;
  for (const button of root.querySelectorAll("[data-decide], [data-do='to-prediction']")) {
    button.disabled = !count || (button.dataset.decide === "relabel" && !about.classes.length);
    button.removeAttribute("aria-pressed");
  }
}

function toggle(tile, isRange) {
  const all = tiles();
  const on = !isChosen(tile);
  const [first, last] = [all.indexOf(tile), isRange && anchor !== null ? anchor : all.indexOf(tile)].sort((a, b) => a - b);
  select(all.slice(first, last + 1), on);
  anchor = all.indexOf(tile);
}

async function renderGrid(answer) {
  grid = answer;
  anchor = null;
  part("tiles").innerHTML = answer.html.tiles;
  const last = answer.at + answer.rows.length;
  part("range").textContent = answer.rows.length
    ? `${number(answer.at + 1)} to ${number(last)} of ${number(answer.left)} rows left`
    : nothingLeft(answer);
  close(part("picker"));
  select([], false);
  renderProgress(answer, "");
  await Promise.all([...part("tiles").querySelectorAll("img")].map((image) => image.decode().catch(() => null)));
}

function showView(view, row = shown.row) {
  root.dataset.view = view;
  part("grid").hidden = view !== "grid";
  root.querySelector("[data-do='grid']").setAttribute("aria-pressed", view === "grid");
  return view === "grid" ? ask("grid", {at: grid.at}) : ask("show", {row});
}

async function decideChosen(decision, label) {
  const rows = chosenRows();
  if (!rows.length) return complain("Select rows first: click on them, or press A for all.");
  if (await ask("decide_all", {rows, decision, label, at: grid.at})) {
    batch = grid.ids;
    part("status").textContent = `Saved: ${rows.length} row${rows.length > 1 ? "s" : ""}, ${inWords(decision, label)}`;
    refreshFacts(1500);
  }
}

async function undoChosen() {
  const ids = batch.includes(grid.last) ? batch : [grid.last];
  if (await ask("undo_all", {ids, at: grid.at})) {
    batch = [];
    refreshFacts(1500);
  }
}

function turn(pages) {
  const at = grid.at + pages * about.tiles;
  if (at >= 0 && at < grid.left) ask("grid", {at});
}
