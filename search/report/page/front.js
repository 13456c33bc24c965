// KV cache against what it costs: a line a method and merge, a marker an export class.

const hidden = new Set(); // names of series that the reader switched off

/** What layouts can be held against one another by, of both runs where there are two. */
function measures() {
  const known = state.run.columns.filter((c) => isMeasure(c) && state.rows.some((row) => isFound(row) && row[c] !== null));
  const common = state.run.comparable, fair = known.filter((c) => !common || common.includes(c === "error" ? "error" : "over"));
  return ["over", ...fair].filter((c, at, all) => all.indexOf(c) === at && fair.includes(c));
}

function fillMeasures() {
  $("measure").replaceChildren(...measures().map((c) => new Option(nameOf(c), c)));
}

/** Rows of one line, the best of each size connected. */
function series() {
  const found = new Map(), merges = new Set(state.rows.map((row) => row.merge));
  for (const row of state.rows) {
    const original = row.method === state.run.original;
    const name = [original || merges.size === 1 ? row.method : `${row.method}, ${row.merge}`, row.run.name].filter(Boolean).join(", ");
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(row);
  }
  return found;
}

const onFront = (row, measure) => row[measure === "error" ? "on_front" : "on_nll_front"] === 1;

function drawFront() {
  const measure = $("measure").value, within = span(measure), traces = [], entries = [];
  let colours = 0;
  for (const [name, rows] of series()) {
    const shown = rows.filter((row) => row[measure] !== null);
    if (!shown.length) continue;
    const original = rows[0].method === state.run.original, found = isFound(rows[0]);
    const colour = original ? css("ink") : found ? COLOURS[colours++ % COLOURS.length] : css("quiet");
    const open = state.run.baselines.indexOf(rows[0].method) % 2 === 1 ? "-open" : "";
    entries.push({
      text: found || original ? name : `${name} (baseline)`, sign: original ? "★" : open ? "□" : "■", colour, off: hidden.has(name),
      toggle: () => { if (!hidden.delete(name)) hidden.add(name); drawFront(); },
    });
    if (hidden.has(name)) continue;
    traces.push({
      name, mode: "markers", type: "scatter", customdata: shown.map((row) => row.at),
      x: shown.map((row) => sizeOf(row)), y: shown.map((row) => placed(row[measure], within)),
      text: shown.map(hover), hovertemplate: "%{text}<extra></extra>",
      marker: {
        color: colour, size: original ? 15 : 8, symbol: original ? "star" : shown.map((row) => SYMBOLS[row.deploy] + open),
        opacity: shown.map((row) => (onFront(row, measure) || original || !found ? 1 : PALE)),
      },
    });
    if (found) traces.push(frontLine(shown, measure, within, traces.at(-1)));
  }
  traces.push(...marks(measure, within));
  key("front-key", entries);
  key("front-meanings", meanings(measure));
  draw("front", traces, look({
    hovermode: "closest", ...axisBreak(within), yaxis: heightAxis(measure, within),
    xaxis: { title: { text: state.run.traded }, tickformat: ".0%", range: [0, 1.04] },
  }));
}

/** Rings around the selected row and the one that it is compared with. */
const marks = (measure, within) => shownWith(state.selected).filter((row) => row[measure] !== null).map((row, at) => ({
  name: "selected", hoverinfo: "skip", mode: "markers", x: [sizeOf(row)], y: [placed(row[measure], within)],
  marker: { size: 20, symbol: "circle-open", color: css(at ? "accent" : "mark"), line: { width: 3 } },
}));

/** What markers say, of those that are there. */
function meanings(measure) {
  const shown = state.rows.filter((row) => isFound(row) && row[measure] !== null);
  const classes = Object.keys(SIGNS).filter((kind) => shown.some((row) => row.deploy === kind));
  const found = classes.map((kind) => ({ text: kind === "none" ? "no engine takes it" : kind, sign: SIGNS[kind] }));
  if (shown.some((row) => !onFront(row, measure))) {
    found.push({ text: "pale: another layout of the run is as small and loses less", pale: true });
  }
  found.push({ text: "selected", sign: "◯", colour: css("mark") });
  if (state.kept) found.push({ text: "compared with", sign: "◯", colour: css("accent") });
  return found;
}

function frontLine(rows, measure, within, trace) {
  const best = new Map();
  for (const row of rows) {
    const known = best.get(sizeOf(row));
    if (!known || isBetter(measure, row[measure], known[measure])) best.set(sizeOf(row), row);
  }
  const line = [...best.values()].sort((a, b) => sizeOf(a) - sizeOf(b));
  return {
    x: line.map((row) => sizeOf(row)), y: line.map((row) => placed(row[measure], within)), mode: "lines", hoverinfo: "skip",
    line: { color: trace.marker.color, width: 1.3 },
  };
}

function hover(row) {
  const lines = [
    `<b>${titleOf(row)}</b>, ${row.method}, ${row.merge}`, `${percent(sizeOf(row))} of the original's, ${row.deploy}`,
    ...["error", "over", "kl"].filter((column) => row[column] !== null && row[column] !== undefined)
      .map((column) => `${nameOf(column)} ${said(row, column)}`),
  ];
  return lines.join("<br>");
}

/** Rows that the arrow keys go along, by rising cache. */
function along() {
  const measure = $("measure").value;
  return state.rows.filter((row) => isFound(row) && row[measure] !== null && onFront(row, measure))
    .sort((a, b) => sizeOf(a) - sizeOf(b));
}

function step(by) {
  const rows = along(), now = state.selected;
  if (!rows.length) return;
  const at = rows.indexOf(now);
  const near = rows.filter((row) => (by > 0 ? sizeOf(row) > sizeOf(now) : sizeOf(row) < sizeOf(now)));
  const next = at >= 0 ? rows[at + by] : by > 0 ? near[0] : near.at(-1);
  if (next) select(next);
}
