// The page of the review, run by gr.HTML: `element` holds review.html, `server` calls the functions of ReviewService.
// What comes from the data arrives as HTML that the server has escaped, or is set as text.
const root = element.querySelector(".vog-review");
const part = (name) => root.querySelector(`[data-part="${name}"]`);
const form = part("filter");
const field = (name) => form.elements[name];
const number = (value) => value.toLocaleString("en");
for (const outer of [".html-container", ".app"]) element.closest(outer)?.style.setProperty("padding", "0");
let about = null;
let shown = {row: null, mine: null, label: null, prediction: null};
let busy = false;
let drafts = {}; // notes that are in no journal yet, by who wrote them and about which row

// The state of this tab, stored by the browser, so that a reload continues there.
const place = () => `vog-review ${about.key}`;
function remember() {
  const values = {...filter(), skip: field("skip").value};
  const kept = {reviewer: part("reviewer").value, values, row: shown.row, heat: root.dataset.heat, drafts};
  kept.view = root.dataset.view;
  sessionStorage.setItem(place(), JSON.stringify(kept));
}
function recalled() {
  try {
    return JSON.parse(sessionStorage.getItem(place())) ?? {};
  } catch {
    return {};
  }
}

const draft = (row) => `${part("reviewer").value.trim()} ${row}`;
const written = () => shown.mine?.note ?? "";
function keepNote() {
  if (part("note").value === written()) delete drafts[draft(shown.row)];
  else drafts[draft(shown.row)] = part("note").value;
  remember();
}

function filter() {
  const bound = (name, otherwise) => {
    const value = field(name).valueAsNumber;
    return Number.isFinite(value) ? Math.min(100, Math.max(0, value)) : otherwise;
  };
  const [low, high] = [bound("low", 0), bound("high", 100)];
  return {
    order: field("order").value,
    tail: field("tail").value,
    mismatched: field("mismatched").checked,
    low: Math.min(low, high),
    high: Math.max(low, high),
    search: field("search").value,
    random: Number(field("random").value),
    classes: [...field("classes").selectedOptions].map((option) => Number(option.value)),
    patterns: [...field("patterns").selectedOptions].map((option) => option.value),
  };
}
function fill(values) {
  field("order").value = values.order ?? about.start.order;
  field("tail").value = values.tail ?? (values.order ? "highest" : about.start.tail);
  field("mismatched").checked = values.mismatched ?? false;
  field("low").value = values.low ?? 0;
  field("high").value = values.high ?? 100;
  field("search").value = values.search ?? "";
  field("skip").value = values.skip ?? "me";
  field("random").value = values.random ?? about.random;
  for (const option of field("classes").options) {
    option.selected = (values.classes ?? []).includes(Number(option.value));
  }
  for (const option of field("patterns").options) {
    option.selected = (values.patterns ?? []).includes(option.value);
  }
}

function complain(text) {
  part("alert").textContent = text;
  part("alert").hidden = !text;
}

// Without an answer Gradio's client gives nothing, or throws.
async function answerOf(name, asked = {}) {
  const answer = await server[name](asked);
  if (!answer) throw new Error("no answer");
  return answer;
}

// Ask the server, one question at a time: a key pressed before the answer is about a row that nobody has seen yet.
async function ask(name, extra = {}) {
  if (busy) return false;
  busy = true;
  root.dataset.state = "waiting";
  try {
    const asked = {reviewer: part("reviewer").value.trim(), filter: filter(), skip: field("skip").value, ...extra};
    const answer = await answerOf(name, asked);
    if (answer.error) {
      complain(answer.error);
      return false;
    }
    complain("");
    await (answer.rows ? renderGrid(answer) : render(answer));
    remember();
    return true;
  } catch {
    complain("The server does not respond. Earlier decisions are in the journal; try again when it runs.");
    return false;
  } finally {
    busy = false;
    root.dataset.state = "ready";
  }
}

async function render(answer) {
  shown = answer;
  for (const name of ["stage", "facts", "trace", "near_rows"]) part(name).innerHTML = answer.html[name] ?? "";
  if (answer.row === null) part("stage").textContent = nothingLeft(answer);
  part("decisions").innerHTML = answer.decisions ?? "";
  part("note").value = drafts[draft(answer.row)] ?? written();
  close(part("picker"));
  for (const button of root.querySelectorAll("[data-decide]")) {
    button.setAttribute("aria-pressed", button.dataset.decide === answer.mine?.decision);
    button.disabled = answer.row === null || (button.dataset.decide === "relabel" && !about.classes.length);
  }
  const prediction = root.querySelector("[data-do='to-prediction']");
  prediction.disabled = answer.prediction === null || answer.prediction === answer.label;
  const drawn = answer.random ? " (random row)" : "";
  renderProgress(answer, answer.place === null ? "" : ` · Position ${number(answer.place)}${drawn}`);
  await Promise.all([...part("stage").querySelectorAll("img")].map((image) => image.decode().catch(() => null)));
  root.dataset.row = answer.row ?? "";
}

const nothingLeft = (answer) =>
  answer.length
    ? "All rows of this queue are reviewed. Change the filters, or set Hide reviewed to no."
    : "No rows match these filters.";

function renderProgress(answer, position) {
  part("bar").max = Math.max(1, answer.length);
  part("bar").value = answer.decided;
  const pace = answer.pace === null ? "" : ` · ${answer.pace.toFixed(answer.pace < 10 ? 1 : 0)} a minute`;
  part("progress").textContent = `${number(answer.decided)} of ${number(answer.length)} decided${position}${pace}`;
  part("status").textContent = answer.message;
}

let facts = null;
function refreshFacts(delay) {
  clearTimeout(facts);
  facts = setTimeout(async () => {
    const answer = await answerOf("facts", {filter: filter()}).catch(() => ({}));
    const [found, ...outlook] = answer.yield ?? [];
    part("verdict").textContent = answer.verdict ?? "";
    part("yield").textContent = found ?? "";
    part("outlook").textContent = outlook.join(" ");
    part("agreement").textContent = answer.agreement ?? "";
  }, delay);
}

// Decisions

function inWords(decision, label) {
  if (decision !== "relabel") return decision;
  return label === "prediction" ? "relabel to the prediction" : `relabel to ${about.classes[label]}`;
}

async function decide(decision, label = null) {
  if (busy || (shown.row === null && !inGrid())) return;
  if (!part("reviewer").value.trim()) {
    complain("Enter your name first: decisions are stored under it.");
    part("reviewer").focus();
    return;
  }
  if (decision === "relabel" && label === null) {
    if (about.classes.length) openPicker();
    return;
  }
  if (inGrid()) return decideChosen(decision, label);
  const row = shown.row;
  const note = part("note").value;
  const done = await ask("decide", {row, decision, label, note, opened: shown.opened === true});
  if (done) {
    if (drafts[draft(row)] === note) delete drafts[draft(row)];
    remember();
    if (!part("status").textContent) part("status").textContent = `Saved: row ${row}, ${inWords(decision, label)}`;
    refreshFacts(1500);
  }
}

function openPicker() {
  part("picker").hidden = false;
  part("picked").value = "";
  listLabels();
  part("picked").focus();
}
function close(picker) {
  if (picker.hidden) return;
  picker.hidden = true;
  if (picker.contains(document.activeElement)) document.activeElement.blur();
}
function listLabels() {
  const wanted = part("picked").value.trim().toLowerCase();
  const all = about.classes.map((name, value) => ({name, value}));
  const exact = all.filter(({name, value}) => String(value) === wanted || name.toLowerCase() === wanted);
  const like = all.filter((one) => !exact.includes(one) && one.name.toLowerCase().includes(wanted));
  const found = [...exact, ...like].filter(({value}) => inGrid() || value !== shown.label).slice(0, 50);
  if (!wanted) found.sort((one, other) => (other.value === shown.prediction) - (one.value === shown.prediction));
  part("labels").replaceChildren(
    ...found.map(({name, value}, at) => {
      const item = document.createElement("li");
      item.role = "option";
      item.id = `vog-new-label-${value}`;
      item.dataset.label = value;
      item.textContent = name === String(value) ? name : `${value} ${name}`;
      item.setAttribute("aria-selected", at === 0);
      return item;
    }),
  );
  point();
}
const chosen = () => part("labels").querySelector("[aria-selected='true']");
function point() {
  part("picked").setAttribute("aria-activedescendant", chosen()?.id ?? "");
  chosen()?.scrollIntoView({block: "nearest"});
}
function choose(step) {
  const next = step > 0 ? chosen()?.nextElementSibling : chosen()?.previousElementSibling;
  if (!next) return;
  chosen().setAttribute("aria-selected", false);
  next.setAttribute("aria-selected", true);
  point();
}

let other = null;
async function playOther(row) {
  other?.pause();
  const answer = await answerOf("sound", {row}).catch(() => ({}));
  other = answer.sound ? new Audio(answer.sound) : null;
  other?.play();
}

// What buttons and keys do

const actions = {
  keep: () => decide("keep"),
  drop: () => decide("drop"),
  unsure: () => decide("unsure"),
  relabel: () => decide("relabel"),
  "to-prediction": () => {
    const isDisabled = root.querySelector("[data-do='to-prediction']").disabled;
    if (!isDisabled) decide("relabel", inGrid() ? "prediction" : shown.prediction);
  },
  undo: async () => {
    if (inGrid()) return undoChosen();
    if (await ask("undo", {row: shown.row, last: shown.last})) refreshFacts(1500);
  },
  previous: () => (inGrid() ? turn(-1) : ask("show", {row: shown.row, step: -1})),
  next: () => (inGrid() ? turn(1) : ask("show", {row: shown.row, step: 1})),
  grid: () => showView(inGrid() ? "row" : "grid"),
  all: () => (inGrid() ? select(tiles(), true) : false),
  none: () => select(tiles(), false),
  heat: () => {
    root.dataset.heat = root.dataset.heat === "on" ? "off" : "on";
    root.querySelector("[data-do='heat']").setAttribute("aria-pressed", root.dataset.heat === "on");
    remember();
  },
  save: async () => {
    const file = await answerOf("decisions").catch(() => null);
    if (!file || file.error) return complain(file?.error ?? "The server does not respond; nothing was saved.");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([file.text], {type: "application/jsonl"}));
    link.download = file.name;
    link.click();
    URL.revokeObjectURL(link.href);
  },
  keys: () => part("keys").showModal(),
  clear: () => {
    fill({});
    changed();
  },
  note: () => part("note").focus(),
  who: () => part("reviewer").select(),
  filters: () => {
    root.querySelector(".queue").open = true;
    field("order").focus();
  },
  search: () => {
    root.querySelector(".queue").open = true;
    (part("search").hidden ? field("order") : field("search")).focus();
  },
  mismatched: () => {
    if (!part("mismatched").hidden) field("mismatched").click();
  },
  tail: () => form.querySelector("[name='tail']:not(:checked)").click(),
  play: () => {
    const sound = part("stage").querySelector("audio");
    if (sound) sound.paused ? sound.play() : sound.pause();
    return Boolean(sound);
  },
};
const keys = {
  k: "keep", d: "drop", u: "unsure", r: "relabel", p: "to-prediction", z: "undo", h: "heat", n: "note", w: "who",
  g: "grid", a: "all", f: "filters", "/": "search", m: "mismatched", t: "tail", "?": "keys", " ": "play",
  ArrowLeft: "previous", ArrowRight: "next",
};

root.addEventListener("click", (event) => {
  const target = event.target.closest("button, li");
  if (!target || target.disabled) return;
  const {decide: decision, do: action, go, label, play, tile, open} = target.dataset;
  if (decision) actions[decision]();
  else if (action) actions[action]();
  else if (tile) toggle(target, event.shiftKey);
  else if (open) showView("row", Number(open));
  else if (go) ask("show", {row: Number(go), any: true});
  else if (play) playOther(Number(play));
  else if (label) decide("relabel", Number(label));
});

document.addEventListener("keydown", (event) => {
  if (!root.isConnected || event.ctrlKey || event.metaKey || event.altKey || part("keys").open) return;
  const target = event.target;
  if (event.key === "Escape") {
    if (inGrid() && part("picker").hidden) actions.none();
    close(part("picker"));
    if (root.contains(target)) target.blur();
    return;
  }
  if (target === part("picked")) {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") choose(event.key === "ArrowDown" ? 1 : -1);
    else if (event.key === "Enter" && chosen()) decide("relabel", Number(chosen().dataset.label));
    else return;
    event.preventDefault();
    return;
  }
  const ticked = target.matches("[type='checkbox'], [type='radio']"); // where letters mean nothing else
  if (target.matches("input, textarea, select, audio") && !(ticked && event.key.length === 1)) return;
  if (event.key === " " && (ticked || target.matches("button, summary"))) return;
  const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || event.repeat) return;
  if (actions[action]() !== false) event.preventDefault();
});

part("picked").addEventListener("input", listLabels);
form.addEventListener("submit", (event) => event.preventDefault());
let typing = null;
form.addEventListener("input", (event) => {
  clearTimeout(typing);
  root.dataset.state = "waiting";
  typing = setTimeout(changed, event.target.matches("[type='text'], [type='number']") ? 300 : 0);
});
async function changed() {
  if (busy) typing = setTimeout(changed, 50);
  else if (await (inGrid() ? ask("grid") : ask("show", {row: null}))) refreshFacts(500);
}
part("note").addEventListener("input", keepNote);
part("reviewer").addEventListener("change", () => {
  complain("");
  for (const [at, note] of Object.entries(drafts)) {
    if (!at.startsWith(" ")) continue; // it was written before there was a name
    delete drafts[at];
    drafts[`${part("reviewer").value.trim()}${at}`] ??= note;
  }
  inGrid() ? ask("grid", {at: grid.at}) : ask("show", {row: shown.row});
});
part("reviewer").addEventListener("keydown", (event) => {
  if (event.key === "Enter") event.target.blur();
});

// Start

(async () => {
  try {
    about = await answerOf("about");
  } catch {
    complain("The server does not respond. Reload the page once it runs.");
    return;
  }
  part("title").textContent = about.title || "Review";
  part("size").textContent = `${number(about.rows)} rows`;
  field("order").replaceChildren(...about.columns.map(([value, name]) => new Option(name, value)));
  field("classes").replaceChildren(...about.classes.map((name, value) => new Option(name, value)));
  field("patterns").replaceChildren(...about.patterns.map(([value, name]) => new Option(name, value)));
  const shares = [...new Set([0, 5, 10, 20, about.random])].sort((one, other) => one - other);
  field("random").replaceChildren(...shares.map((share) => new Option(share ? `${share} %` : "none", share)));
  const compared = about.classes.length > 0 && about.predictions;
  part("classes").hidden = !about.classes.length;
  part("patterns").hidden = !about.patterns.length;
  part("mismatched").hidden = !compared;
  part("search").hidden = !about.texts;
  root.querySelector("[data-decide='relabel']").hidden = !about.classes.length;
  root.querySelector("[data-do='to-prediction']").hidden = !compared;
  root.querySelector("[data-do='heat']").hidden = !about.heat;
  if (matchMedia("(max-width: 1000px)").matches) root.querySelector(".queue").open = false;
  const kept = recalled();
  part("reviewer").value = kept.reviewer ?? about.reviewer;
  if (kept.heat === "on") actions.heat();
  drafts = kept.drafts ?? {};
  fill(kept.values ?? {});
  await ask("show", {row: kept.row ?? null});
  if (kept.view === "grid") await showView("grid");
  refreshFacts(500);
})();
