// Layer by layer: how alike heads are, what each costs, how its search came on, what refinement did.

const SCALE = [[0, "#440154"], [0.25, "#3b528b"], [0.5, "#21908c"], [0.75, "#5dc963"], [1, "#fde725"]]; // viridis

/** KV heads in the order of the layout's groups. */
function order(row, layer, kind) {
  const groups = groupsOf(row, kind)[layer], each = row.run.queryHeads / row.run.kvHeads;
  const heads = [...Array(row.run.kvHeads).keys()];
  return heads.sort((a, b) => groups[a * each] - groups[b * each] || a - b);
}

function drawSimilarity(row) {
  const maps = row.run.similarity, n = row.run.kvHeads, last = row.run.layers - 1;
  const layer = Math.min(last, Number($("layer").value)), traces = [], layout = { annotations: [] };
  $("layer").max = last;
  $("layer-number").textContent = unitNamed(row.run, layer);
  for (const [at, [kind, when]] of [["k", "before"], ["k", "aligned"], ["v", "before"], ["v", "aligned"]].entries()) {
    const heads = order(row, layer, kind), axis = at === 0 ? "" : String(at + 1), flat = maps[layer][kind][when];
    traces.push({
      type: "heatmap", z: heads.map((a) => heads.map((b) => flat[a * n + b] / 100)), colorscale: SCALE, zmin: 0, zmax: 1,
      xaxis: `x${axis}`, yaxis: `y${axis}`, showscale: false,
      text: heads.map((a) => heads.map((b) => `heads ${a} and ${b}`)), hovertemplate: "%{text}: %{z:.2f}<extra></extra>",
    });
    const labels = { tickvals: heads.map((_, i) => i), ticktext: heads.map(String), constrain: "domain", showticklabels: n <= 16 && !narrow(), ticks: "" };
    const [left, right, low, high] = narrow() ? [at % 2 / 2, at % 2 / 2 + 0.45, 0.55 - 0.55 * (at >> 1), 0.97 - 0.55 * (at >> 1)]
      : [at * 0.255, at * 0.255 + 0.225, 0, 1];
    layout[`xaxis${axis}`] = { ...labels, domain: [left, right], anchor: `y${axis}` };
    layout[`yaxis${axis}`] = { ...labels, domain: [low, high], autorange: "reversed", anchor: `x${axis}`, scaleanchor: `x${axis}` };
    layout.annotations.push({
      text: kind.toUpperCase() + (when === "before" ? "" : ", aligned"), showarrow: false, font: { size: 12 },
      xref: "paper", yref: "paper", x: (left + right) / 2, y: high, yanchor: "bottom",
    });
  }
  draw("similarity", traces, look({ ...layout, margin: narrow() ? { l: 5, r: 5, t: 30, b: 10 } : { l: 30, r: 5, t: 50, b: 30 } }));
}

function drawLandscape(row) {
  const { layer, kv_heads: heads, error, k_error: keys } = row.run.landscape, part = $("part").value;
  const counts = [...new Set(heads)].sort((a, b) => a - b), layers = row.run.layers;
  const z = counts.map(() => Array(layers).fill(null));
  layer.forEach((of, i) => {
    const value = part === "error" ? error[i] : keys[i] === null ? null : part === "k" ? keys[i] : error[i] - keys[i];
    z[counts.indexOf(heads[i])][of] = value === null || value <= 0 ? null : Math.log10(value);
  });
  const known = z.flat().some((v) => v !== null);
  draw("landscape", [
    {
      type: "heatmap", x: [...Array(layers).keys()], y: counts.map(String), z, colorscale: SCALE, customdata: z.map((line) => line.map((v) => (v === null ? "" : number(10 ** v)))),
      colorbar: { title: { text: "error" }, tickprefix: "1e", dtick: 1, thickness: narrow() ? 10 : 20 }, hovertemplate: state.run.unit + " %{x}, %{y} heads: error %{customdata}<extra></extra>",
    },
    {
      type: "scatter", mode: "markers", x: [...Array(layers).keys()], y: headsOf(row).map(([k, v]) => String(part === "v" ? v : k)),
      marker: { color: "#ffffff", size: narrow() ? 6 : 9, symbol: "diamond", line: { color: "#000000", width: narrow() ? 1 : 1.5 } },
      hovertemplate: state.run.unit + " %{x}: this layout has %{y}<extra></extra>",
    },
  ], look({
    xaxis: { title: { text: state.run.unit } }, yaxis: { title: { text: "KV heads" }, type: "category", categoryarray: counts.map(String) },
    annotations: known ? [] : [{ text: "this run does not say", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
  }));
}

/** Of each method and layer, best errors relative to its first generation: [{ method, scored, share }]. */
function searches(run) {
  return run.progress.flatMap(({ method, scored, error }) => [...new Set(method)].map((name) => {
    const own = method.map((_, i) => i).filter((i) => method[i] === name), first = error[own[0]] || 1;
    return { method: name, scored: own.map((i) => scored[i]), share: own.map((i) => error[i] / first) };
  }));
}

/** Whether any search became better by 1% after its first generation: else there is nothing to see. */
const hasProgress = (run) => searches(run).some(({ share }) => share.some((value) => value <= 0.99));

function drawProgress(row) {
  const found = searches(row.run), methods = [...new Set(found.map(({ method }) => method))], { unit } = row.run;
  const colour = (at) => COLOURS[at % COLOURS.length];
  key("progress-key", methods.map((text, at) => ({ text, colour: colour(at) })));
  draw("progress", methods.map((name, at) => {
    const lines = found.filter(({ method }) => method === name); // null ends a line
    return {
      name, mode: "lines", type: "scatter", x: lines.flatMap(({ scored }) => [...scored, null]), y: lines.flatMap(({ share }) => [...share, null]),
      opacity: 0.7, line: { width: 1, color: colour(at) }, hovertemplate: `${name}: %{y:.3f} after %{x}<extra></extra>`,
    };
  }), look({
    xaxis: { title: { text: `groupings scored, a line a ${unit}` } }, yaxis: { title: { text: "of the first generation's" } },
  }));
}

/** Where the table of refinements speaks of this row's layout and merge. */
function refinedRows(row) {
  const { layout, merge } = row.run.refined, wanted = row.merge.endsWith("+refine") ? row.merge : `${row.merge}+refine`;
  return layout.map((_, i) => i).filter((i) => layout[i] === row.layout && merge[i] === wanted);
}

/** Sections that this run, or this layout, has nothing for are not shown. */
function showSections(row) {
  $("similarity-section").hidden = !row.run.similarity.length;
  $("progress-section").hidden = !hasProgress(row.run);
  $("refined-section").hidden = !shownWith(row).some((one) => refinedRows(one).length);
  $("positions-section").hidden = !lossesByPosition(row).length;
  $("bounds-section").hidden = !boundRows(row).length;
}

/** Where the table of bounds speaks of this row's layout. */
function boundRows({ run, layout }) {
  return run.bounds.layout.map((_, i) => i).filter((i) => run.bounds.layout[i] === layout);
}

function drawBounds(row) {
  const { bounds, bounded, unit } = row.run, here = boundRows(row);
  const traces = Object.entries(bounded[$("bounded").value]).map(([column, name], at) => ({
    name, type: "bar", x: here.map((i) => bounds.layer[i]), y: here.map((i) => bounds[column][i]), marker: { color: COLOURS[at] },
    hovertemplate: `${unit} %{x}, ${name}: %{y:.3g}<extra></extra>`,
  }));
  key("bounds-key", traces.map(({ name, marker }) => ({ text: name, colour: marker.color })));
  draw("bounds", traces, look({ barmode: "group", xaxis: { title: { text: unit } }, yaxis: { title: { text: "error, of the energy" } } }));
}

function drawRefined(row) {
  const traces = shownWith(row).flatMap((one, at) => {
    const { layer, before, after } = one.run.refined, here = refinedRows(one), of = at || state.kept ? `${titleBeside(one)}: ` : "";
    return [["merged", before, COLOURS[1 + 2 * at]], ["refined", after, COLOURS[2 * at]]].map(([name, values, color]) => ({
      name: of + name, type: "bar", x: here.map((i) => layer[i]), y: here.map((i) => values[i]), marker: { color },
      hovertemplate: `${state.run.unit} %{x}, ${of}${name}: %{y:.3g}<extra></extra>`,
    }));
  }).filter(({ x }) => x.length);
  key("refined-key", traces.map(({ name, marker }) => ({ text: name, colour: marker.color })));
  draw("refined", traces, look({
    barmode: "group", xaxis: { title: { text: state.run.unit } }, yaxis: { title: { text: `error of the ${state.run.unit}'s output` } },
  }));
}
