// Sorting, filtering, state in the address and the theme. The pages are complete without any of it.
"use strict";

const tables = [...document.querySelectorAll("table[data-sortable]")];
const controls = document.getElementById("controls");
const FILTERS = ["q", "family", "tag", "flag"];

// ---- sorting --------------------------------------------------------------------------------------------------

const SEPARATOR = "~"; // occurs in no table id and in no column key

function valueOf(row, column, numeric) {
  const cell = row.cells[column];
  const raw = cell.dataset.value ?? cell.textContent.trim().toLowerCase();
  if (!numeric) return raw;
  const number = Number.parseFloat(raw);
  return Number.isNaN(number) ? null : number;
}

function compare(a, b) {
  return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
}

/** Sort by the header cell; missing values stay last whichever the direction, ties keep the built order. */
function sortBy(table, header, direction) {
  const column = header.cellIndex;
  const numeric = header.matches(".num, [data-numeric]");
  const sign = direction === "asc" ? 1 : -1;
  const keyed = table.builtOrder.map((row) => ({ row, value: valueOf(row, column, numeric) }));
  const empty = (value) => value === null || value === "";
  keyed.sort((a, b) => {
    if (empty(a.value) || empty(b.value)) return Number(empty(a.value)) - Number(empty(b.value));
    return sign * compare(a.value, b.value);
  });
  table.tBodies[0].append(...keyed.map((item) => item.row));
  for (const other of table.querySelectorAll("th[data-key]")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction === "asc" ? "ascending" : "descending");
}

function unsort(table) {
  table.tBodies[0].append(...table.builtOrder);
  for (const header of table.querySelectorAll("th[aria-sort]")) header.removeAttribute("aria-sort");
}

function firstDirection(header) {
  return header.dataset.first || (header.classList.contains("num") ? "desc" : "asc");
}

function onSort(table, header) {
  const now = header.getAttribute("aria-sort");
  let direction = firstDirection(header);
  if (now) direction = now === "ascending" ? "desc" : "asc";
  sortBy(table, header, direction);
  saveState();
}

/** Give a header cell a button. A link in it stays a link, and the button gets a name of its own. */
function addButton(table, header) {
  const button = document.createElement("button");
  button.type = "button";
  if (header.querySelector("a")) {
    button.setAttribute("aria-label", `Sort by ${header.dataset.label}`);
    header.append(button);
  } else {
    button.append(...header.childNodes);
    header.append(button);
  }
  button.addEventListener("click", () => onSort(table, header));
}

for (const table of tables) {
  table.builtOrder = [...table.tBodies[0].rows];
  for (const header of table.querySelectorAll("th[data-key]")) addButton(table, header);
}

// ---- filtering ------------------------------------------------------------------------------------------------

function matches(row, filter) {
  const words = filter.q.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.every((word) => row.dataset.search.includes(word))) return false;
  if (filter.family && row.dataset.family !== filter.family) return false;
  if (filter.tag && !JSON.parse(row.dataset.tags).includes(filter.tag)) return false;
  const flags = JSON.parse(row.dataset.flags);
  if (filter.flag === "!") return flags.length === 0;
  return !filter.flag || flags.includes(filter.flag);
}

function applyFilters() {
  if (!controls) return;
  const filter = Object.fromEntries(FILTERS.map((name) => [name, controls.elements[name].value]));
  for (const row of document.querySelectorAll("tr[data-filter]")) row.hidden = !matches(row, filter);
  const rows = [...tables[0].tBodies[0].rows];
  const visible = rows.filter((row) => !row.hidden).length;
  document.getElementById("shown").textContent = `${visible} of ${rows.length} defenses`;
}

if (controls) {
  controls.addEventListener("input", () => { applyFilters(); saveState(); });
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", () => {
    // The fields have their new values only after the event.
    setTimeout(() => { tables.forEach(unsort); applyFilters(); saveState(); });
  });
}

// ---- state in the address -------------------------------------------------------------------------------------

function saveState() {
  const state = new URLSearchParams();
  for (const name of controls ? FILTERS : []) {
    if (controls.elements[name].value) state.set(name, controls.elements[name].value);
  }
  for (const header of document.querySelectorAll("th[aria-sort]")) {
    const direction = header.getAttribute("aria-sort") === "ascending" ? "asc" : "desc";
    state.append("sort", [header.closest("table").id, header.dataset.key, direction].join(SEPARATOR));
  }
  const hash = state.toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

function loadState() {
  const hash = location.hash.slice(1);
  if (hash && !hash.includes("=")) return; // an ordinary anchor, such as the skip link
  const state = new URLSearchParams(hash);
  for (const name of controls ? FILTERS : []) {
    const field = controls.elements[name];
    field.value = state.get(name) ?? "";
    if (field.selectedIndex === -1) field.value = ""; // a value that no longer exists
  }
  tables.forEach(unsort);
  for (const entry of state.getAll("sort")) {
    const [id, key, direction] = entry.split(SEPARATOR);
    const table = tables.find((candidate) => candidate.id === id);
    const header = table && [...table.querySelectorAll("th[data-key]")].find((th) => th.dataset.key === key);
    if (header) sortBy(table, header, direction === "asc" ? "asc" : "desc");
  }
  applyFilters();
}

window.addEventListener("hashchange", loadState);
loadState();

// ---- theme ----------------------------------------------------------------------------------------------------

const root = document.documentElement;
const themeButton = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches;
}

function nameThemeButton() {
  themeButton.textContent = isDark() ? "Light theme" : "Dark theme";
}

themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch {
    // Storage may be closed to pages opened from disk; the theme then lasts for this page.
  }
  nameThemeButton();
});
prefersDark.addEventListener("change", nameThemeButton);
nameThemeButton();
