// Layer by layer: how alike heads are, what each costs, how its search came on, what refinement did.

const SCALE = [[0, "#440154"], [0.25, "#3b528b"], [0.5, "#21908c"], [0.75, "#5dc963"], [1, "#fde725"]]; // viridis

/** KV heads in the order of the layout's groups. */
function order(row, layer, kind) {
  const groups = groupsOf(row, kind)[layer], each = state.run.queryHeads / state.run.kvHeads;
  const heads = [...Array(state.run.kvHeads).keys()];
  return heads.sort((a, b) => groups[a * each] - groups[b * each] || a - b);
}

function drawSimilarity(row) {
  const maps = state.run.similarity;
  const layer = Number($("layer").value), traces = [], n = state.run.kvHeads, layout = { annotations: [] };
  $("layer-number").textContent = state.run.names[layer] || layer;
  let at = 0;
  for (const kind of ["k", "v"]) {
    const heads = order(row, layer, kind);
    for (const when of ["before", "aligned"]) {
      const axis = at === 0 ? "" : String(at + 1), flat = maps[layer][kind][when];
      traces.push({
        type: "heatmap", z: heads.map((a) => heads.map((b) => flat[a * n + b] / 100)), colorscale: SCALE, zmin: 0, zmax: 1,
        xaxis: `x${axis}`, yaxis: `y${axis}`, showscale: at === 3,
        text: heads.map((a) => heads.map((b) => `heads ${a} and ${b}`)), hovertemplate: "%{text}: %{z:.2f}<extra></extra>",
      });
      const labels = { tickvals: heads.map((_, i) => i), ticktext: heads.map(String), constrain: "domain", showticklabels: n <= 16 && !narrow() };
      const [left, right, low, high] = narrow() ? [at % 2 / 2, at % 2 / 2 + 0.42, 0.55 - 0.55 * (at >> 1), 0.97 - 0.55 * (at >> 1)]
        : [at * 0.25, at * 0.25 + 0.22, 0, 1];
      layout[`xaxis${axis}`] = { ...labels, domain: [left, right], anchor: `y${axis}` };
      layout[`yaxis${axis}`] = { ...labels, domain: [low, high], autorange: "reversed", anchor: `x${axis}`, scaleanchor: `x${axis}` };
      layout.annotations.push({
        text: `${kind.toUpperCase()}, ${when === "before" ? "as they stand" : "aligned"}`, showarrow: false, font: { size: 11 },
        xref: "paper", yref: "paper", x: (left + right) / 2, y: high, yanchor: "bottom", yshift: narrow() ? 0 : 8,
      });
      at += 1;
    }
  }
  draw("similarity", traces, look({ ...layout, margin: { l: 30, r: 20, t: 40, b: 30 } }));
}

function drawLandscape(row) {
  const { layer, kv_heads: heads, error, k_error: keys } = state.run.landscape, part = $("part").value;
  const counts = [...new Set(heads)].sort((a, b) => a - b), layers = state.run.layers;
  const z = counts.map(() => Array(layers).fill(null));
  layer.forEach((of, i) => {
    const value = part === "error" ? error[i] : keys[i] === null ? null : part === "k" ? keys[i] : error[i] - keys[i];
    z[counts.indexOf(heads[i])][of] = value === null || value <= 0 ? null : Math.log10(value);
  });
  const known = z.flat().some((v) => v !== null);
  draw("landscape", [
    {
      type: "heatmap", x: [...Array(layers).keys()], y: counts.map(String), z, colorscale: SCALE, customdata: z.map((line) => line.map((v) => (v === null ? "" : number(10 ** v)))),
      colorbar: { title: { text: "error" }, tickprefix: "1e", dtick: 1 }, hovertemplate: state.run.unit + " %{x}, %{y} heads: error %{customdata}<extra></extra>",
    },
    {
      type: "scatter", mode: "markers", x: [...Array(layers).keys()], y: headsOf(row).map(([k, v]) => String(part === "v" ? v : k)),
      marker: { color: "#ffffff", size: 9, symbol: "diamond", line: { color: "#000000", width: 1.5 } },
      hovertemplate: state.run.unit + " %{x}: this layout has %{y}<extra></extra>",
    },
  ], look({
    showlegend: false, xaxis: { title: { text: state.run.unit } }, yaxis: { title: { text: "KV heads" }, type: "category", categoryarray: counts.map(String) },
    annotations: known ? [] : [{ text: "this run does not say", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
  }));
}

function drawProgress() {
  const layers = state.run.progress, methods = new Map();
  layers.forEach(({ method, scored, error }) => {
    const first = {};
    method.forEach((name, i) => {
      first[name] = first[name] || error[i] || 1;
      if (!methods.has(name)) methods.set(name, []);
      methods.get(name).push({ scored: scored[i], share: error[i] / first[name] });
    });
  });
  let colour = 0;
  const traces = [...methods].map(([name, points]) => ({
    name, mode: "markers", type: "scatter", x: points.map((p) => p.scored), y: points.map((p) => p.share),
    marker: { size: 4, opacity: 0.6, color: COLOURS[colour++ % COLOURS.length] }, hovertemplate: `${name}: %{y:.3f} after %{x}<extra></extra>`,
  }));
  draw("progress", traces, look({
    legend: legend(), xaxis: { title: { text: `groupings scored, ${state.run.unit} by ${state.run.unit}` } },
    yaxis: { title: { text: "least errors, of the first generation's" } },
  }));
}

/** Where the table of refinements speaks of this row's layout and merge. */
function refinedRows(row) {
  const { layout, merge } = state.run.refined, wanted = row.merge.endsWith("+refine") ? row.merge : `${row.merge}+refine`;
  return layout.map((_, i) => i).filter((i) => layout[i] === row.layout && merge[i] === wanted);
}

/** Sections that this run, or this layout, has nothing for are not shown. */
function showSections(row) {
  $("similarity-section").hidden = !state.run.similarity.length;
  $("progress-section").hidden = !state.run.progress.some(({ method }) => method.length);
  $("refined-section").hidden = !refinedRows(row).length;
  $("positions-section").hidden = !lossesByPosition(row).length;
}

function drawRefined(row) {
  const { layer, before, after } = state.run.refined, here = refinedRows(row);
  const bars = (name, values, color) => ({
    name, type: "bar", x: here.map((i) => layer[i]), y: here.map((i) => values[i]), marker: { color }, hovertemplate: `${state.run.unit} %{x}, ${name}: %{y:.4f}<extra></extra>`,
  });
  draw("refined", [bars("merged", before, COLOURS[1]), bars("refined", after, COLOURS[0])], look({
    barmode: "group", legend: legend(), xaxis: { title: { text: state.run.unit } },
    yaxis: { title: { text: `error of what leaves the ${state.run.unit}` } },
  }));
}
