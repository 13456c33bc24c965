"use strict";
// The page's state, and what inflates what is packed in it.

const $ = (id) => document.getElementById(id);

async function unpacked(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

/** run: the data. rows: of its table, as objects. selected: a row. */
const state = { run: null, rows: [], selected: null };
const listeners = [];

/** Called with the row whenever another one is selected. */
const whenSelected = (listener) => listeners.push(listener);

const pending = new Map(); // plots that wait until they are near what is seen, with what draws them

/** Draw into this element now if it is near what is seen, else when it comes there. */
function whenNear(id, drawing) {
  pending.set(id, drawing);
  watcher.unobserve($(id));
  watcher.observe($(id));
}

const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    const drawing = pending.get(target.id);
    if (isIntersecting && drawing) {
      pending.delete(target.id);
      drawing();
    }
  }
}, { rootMargin: "300px" });

function select(row) {
  state.selected = row;
  history.replaceState(null, "", `#layout=${row.layout}&merge=${encodeURIComponent(row.merge)}`);
  listeners.forEach((listener) => listener(row));
}

const number = (value, digits = 4) =>
  value === null || value === undefined ? "" : typeof value !== "number" ? value
    : Number.isInteger(value) ? value.toLocaleString("en") : String(+value.toPrecision(digits));

const percent = (ratio) => `${+(100 * ratio).toFixed(1)}%`;

/** A row of a small table: a name, then numbers. */
function tableRow(cells, tag = "td") {
  const tr = document.createElement("tr");
  cells.forEach((cell, at) => {
    const td = document.createElement(tag);
    td.textContent = cell;
    td.className = at ? "" : "word";
    tr.append(td);
  });
  return tr;
}

/** KV heads of each layer, K and V: [[8, 8], [8, 4], ...] */
const headsOf = (row) => row.kv_heads.split(";").map((pair) => {
  const [k, v] = pair.split("/").map(Number);
  return [k, v === undefined ? k : v];
});

/** Share of the original's cache, or of its weights of K and V, that a row keeps. */
const sizeOf = (row) => row[state.run.size];

const isFound = (row) => row.method !== state.run.original && !state.run.baselines.includes(row.method);
