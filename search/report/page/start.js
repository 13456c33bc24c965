"use strict";
// The page's state, and what inflates what is packed in it.

const $ = (id) => document.getElementById(id);

async function unpacked(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

/** run: the data, which may have those of another run `beside` it. rows: of their tables, as objects, each with its
    run. selected: a row. kept: a row that the selected one is compared with. */
const state = { run: null, rows: [], selected: null, kept: null };
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
  const run = row.run === state.run ? "" : "&run=2";
  history.replaceState(null, "", `#layout=${row.layout}&merge=${encodeURIComponent(row.merge)}${run}`);
  listeners.forEach((listener) => listener(row));
}

/** The selected row, and the one that it is compared with. */
const shownWith = (row) => [row, state.kept].filter((one, at, all) => one && all.indexOf(one) === at);

const titleOf = (row) => `layout ${row.layout}${row.run.name ? ` of ${row.run.name}` : ""}`;
/** The same, told apart from another merge of the same layout. */
const titleBeside = (row) => `${titleOf(row)}, ${row.merge}`;

function tagged(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  return made;
}

/** A row of a small table: a name, then numbers. */
function tableRow(cells, tag = "td") {
  const tr = tagged("tr");
  tr.append(...cells.map((cell, at) => tagged(tag, cell, at ? "" : "word")));
  return tr;
}

/** Share of the original's cache, or of its weights of K and V, that a row keeps. */
const sizeOf = (row) => row[state.run.size];

const isFound = (row) => row.method !== state.run.original && !state.run.baselines.includes(row.method);
