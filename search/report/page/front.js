// KV cache against what it costs: a line a method and merge, a marker an export class.

const MEASURES = {
  over: "nats over the original", nll: "nats per token", kl: "KL to the original", error: "error of the merge",
  agreement: "same likeliest token",
};

/** What was measured on one of several texts is called KIND:TEXT, what a task gave TASK,METRIC. */
const isMeasure = (column) => column.split(":")[0] in MEASURES || (column.includes(",") && !/stderr/.test(column));
const nameOf = (column) => MEASURES[column] || column;
/** Whether more of it is better. */
const isRising = (column) => column.includes(",") || column.split(":")[0] === "agreement";
/** Whether a is better than b. */
const isBetter = (column, a, b) => (isRising(column) ? a > b : a < b);

function measures() {
  const columns = state.run.columns.filter(isMeasure);
  const known = columns.filter((c) => state.rows.some((row) => isFound(row) && row[c] !== null));
  return ["over", ...known].filter((c, at, all) => all.indexOf(c) === at && known.includes(c));
}

function fillMeasures() {
  $("measure").replaceChildren(...measures().map((c) => new Option(nameOf(c), c)));
}

/** Rows of one line, the best of each size connected. */
function series() {
  const found = new Map();
  for (const row of state.rows) {
    const key = `${row.method}, ${row.merge}`;
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(row);
  }
  return found;
}

function drawFront() {
  const measure = $("measure").value, rising = isRising(measure);
  const floor = (v) => ($("log").checked && !rising ? Math.max(v, leastOf(measure)) : v);
  const traces = [];
  let colour = 0;
  for (const [name, rows] of series()) {
    const shown = rows.filter((row) => row[measure] !== null);
    if (!shown.length) continue;
    const original = rows[0].method === state.run.original, found = isFound(rows[0]);
    traces.push({
      name: original ? "original" : name, mode: "markers", type: "scatter", customdata: shown.map((row) => row.at),
      x: shown.map((row) => sizeOf(row)), y: shown.map((row) => floor(row[measure])),
      text: shown.map(hover), hovertemplate: "%{text}<extra></extra>",
      marker: {
        color: original ? css("ink") : found ? COLOURS[colour++ % COLOURS.length] : css("quiet"),
        size: original ? 15 : 8, symbol: original ? "star" : shown.map((row) => SYMBOLS[row.deploy]),
        opacity: shown.map((row) => (onFront(row, measure) || original || !found ? 1 : 0.35)),
      },
    });
    if (found) traces.push(frontLine(shown, measure, floor, traces.at(-1)));
  }
  const row = state.selected;
  if (row && row[measure] !== null) {
    traces.push({
      name: "selected", showlegend: false, hoverinfo: "skip", mode: "markers", x: [sizeOf(row)], y: [floor(row[measure])],
      marker: { size: 20, symbol: "circle-open", color: css("mark"), line: { width: 3 } },
    });
  }
  draw("front", traces, look({
    hovermode: "closest", legend: legend(),
    xaxis: { title: { text: state.run.traded }, tickformat: ".0%", range: [0, 1.04] },
    yaxis: { title: { text: nameOf(measure) }, ...heightAxis(rising) },
  }));
}

const heightAxis = (rising) => ($("log").checked && !rising ? { type: "log", dtick: 1, exponentformat: "power" } : { type: "linear" });

/** What stands for nothing and less on a logarithmic axis: half of the least there is. */
const leastOf = (measure) => 0.5 * Math.min(...state.rows.map((row) => row[measure]).filter((v) => v !== null && v > 0));

const onFront = (row, measure) => row[measure === "error" ? "on_front" : "on_nll_front"] === 1;

function frontLine(rows, measure, floor, trace) {
  const best = new Map();
  for (const row of rows) {
    const known = best.get(sizeOf(row));
    if (!known || isBetter(measure, row[measure], known[measure])) best.set(sizeOf(row), row);
  }
  const line = [...best.values()].sort((a, b) => sizeOf(a) - sizeOf(b));
  return {
    x: line.map((row) => sizeOf(row)), y: line.map((row) => floor(row[measure])), mode: "lines", hoverinfo: "skip",
    showlegend: false, line: { color: trace.marker.color, width: 1.3 },
  };
}

function hover(row) {
  const lines = [
    `<b>layout ${row.layout}</b>, ${row.method}, ${row.merge}`, `${percent(sizeOf(row))} of the original's, ${row.deploy}`,
    `error ${number(row.error)}`,
  ];
  if (row.nll !== null) lines.push(`${number(row.nll, 5)} nats, ${number(row.over)} over the original`);
  if (row.kl !== null && row.kl !== undefined) lines.push(`KL ${number(row.kl)}`);
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
