// What opens the page, and what its controls do.

/** Rows of the table as objects, of the run beside it behind its own. index: within their run, at: among all. */
function rowsOf(run) {
  const runs = [run, run.beside].filter(Boolean);
  run.columns = [...new Set(runs.flatMap(({ columns }) => columns))];
  run.errors = Object.assign({}, ...runs.map(({ errors }) => errors));
  const empty = Object.fromEntries(run.columns.map((name) => [name, null]));
  return runs.flatMap((one) => one.rows.map((cells, index) => {
    const row = { run: one, index, ...empty };
    cells.forEach((cell, i) => { row[one.columns[i]] = cell; });
    return row;
  })).map((row, at) => Object.assign(row, { at }));
}

/** The one that the address names, else the one that an export at half of the cache takes. */
function firstSelected() {
  const asked = new URLSearchParams(location.hash.slice(1)), run = asked.get("run") === "2" && state.run.beside || state.run;
  const named = state.rows.find((row) => row.run === run && String(row.layout) === asked.get("layout") && (!asked.get("merge") || row.merge === asked.get("merge")));
  return named || state.rows[state.run.first];
}

/** Sections below the first screen, and what draws them. */
const LATER = {
  similarity: drawSimilarity, landscape: drawLandscape, progress: drawProgress, refined: drawRefined,
  positions: drawPositions, bounds: drawBounds,
};

function redraw() {
  if (state.selected) listeners.forEach((listener) => listener(state.selected));
}

function connect() {
  const again = (ids, call, event = "change") => ids.forEach((id) => $(id).addEventListener(event, call));
  again(["measure", "log"], drawFront);
  again(["kind"], () => drawHeads(state.selected));
  $("keep").addEventListener("click", () => keep(state.selected));
  $("drop").addEventListener("click", () => keep(null));
  again(["part"], () => drawLandscape(state.selected));
  again(["bounded"], () => drawBounds(state.selected));
  again(["layer"], () => drawSimilarity(state.selected), "input");
  again(["batch", "context", "card"], () => showCache(state.selected), "input");
  again(["filter"], drawTable, "input");
  again(["front-only"], drawTable);
  $("copy").addEventListener("click", copyCommand);
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("more").addEventListener("click", () => { table.all = true; drawTable(); });
  $("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    redraw();
  });
  matchMedia("(max-width: 799px)").addEventListener("change", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  const chosen = (event) => event.target.closest("tr.selectable");
  $("table").addEventListener("click", (event) => { if (chosen(event)) select(state.rows[chosen(event).dataset.at]); });
  $("table").addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target.matches("tr.selectable")) select(state.rows[event.target.dataset.at]); });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, textarea") || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    step(event.key === "ArrowLeft" ? -1 : 1);
    event.preventDefault();
  });
  $("front").on("plotly_click", ({ points }) => { if (points[0].customdata !== undefined) select(state.rows[points[0].customdata]); });
}

function aboutOf(run) {
  const text = run.text ? `calibrated on ${run.text}` : "without text", name = run.name ? `${run.name}: ` : "";
  return `${name}${run.layers} ${run.unit}s, ${run.queryHeads} query heads over ${run.kvHeads} KV heads of ${run.headDim}; ${run.fitness} fitness, ${text}`;
}

async function open() {
  const [library, data] = await Promise.all([unpacked("library"), unpacked("data")]);
  const script = document.createElement("script");
  script.textContent = library;
  document.head.append(script);
  const run = state.run = JSON.parse(data);
  state.rows = rowsOf(run);
  $("about").replaceChildren(...[run, run.beside].filter(Boolean).map((one) => tagged("span", aboutOf(one))));
  $("made").textContent = run.command;
  $("missing").hidden = !run.missing;
  $("missing").textContent = run.missing || "";
  $("context").value = run.context;
  $("layer").max = run.layers - 1;
  $("layer").value = run.layers >> 1;
  document.querySelectorAll(".unit").forEach((named) => { named.textContent = run.unit; });
  fillMeasures();
  whenSelected(showSections);
  whenSelected(showFacts);
  whenSelected(showCache);
  whenSelected(drawHeads);
  whenSelected(showSamples);
  whenSelected(showPositions);
  whenSelected(drawFront);
  for (const [id, drawing] of Object.entries(LATER)) whenSelected((row) => whenNear(id, () => drawing(row)));
  whenSelected(markSelected);
  drawTable();
  select(firstSelected());
  connect();
  document.documentElement.dataset.ready = "yes";
}

open();
