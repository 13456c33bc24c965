// The selected layout: facts, command, groups of heads.

function showFacts(row) {
  $("number").textContent = row.layout;
  const facts = {
    "found by": [row.method, ...(row.also_found_by || "").split(";").filter(Boolean)].join(", "), "merged by": row.merge,
    [state.run.traded.split(",")[0]]: `${percent(sizeOf(row))}, ${row.kv_bytes_per_token.toLocaleString("en")} bytes a token`,
    "written as": row.deploy === "none" ? "nothing: K and V differ, which no engine takes" : row.deploy,
    "error": number(row.error),
  };
  for (const column of state.run.columns) {
    if (isMeasure(column) && column !== "error" && row[column] !== null) facts[nameOf(column)] = number(row[column], 5);
  }
  const parts = Object.entries(facts).flatMap(([name, value]) => {
    const pair = [document.createElement("dt"), document.createElement("dd")];
    pair[0].textContent = name;
    pair[1].textContent = value;
    return pair;
  });
  const bar = document.createElement("span");
  bar.className = "bar";
  bar.style.width = `${100 * Math.min(1, sizeOf(row))}%`;
  bar.title = percent(sizeOf(row));
  const cells = [document.createElement("dt"), document.createElement("dd")];
  cells[0].textContent = "of the original";
  cells[1].append(bar);
  $("facts").replaceChildren(...parts, ...cells);
  $("command").textContent = commandOf(row);
  const engines = (state.run.engines[row.deploy] || []).join(", ");
  $("engines").textContent = engines ? `Runs in ${engines}.` : "";
}

const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function commandOf(row) {
  if (row.method === state.run.original) return "nothing to do: this is the model as it came";
  if (row.deploy === "none") return "no engine takes this layout: choose another one";
  const merge = row.merge.replace(/\+refine$/, ""), refined = row.merge.endsWith("+refine");
  const words = ["grouper", "export", state.run.run, "-o", `${state.run.model}-${row.layout}`, "--layout", String(row.layout)];
  if (merge !== state.run.merge) words.push("--merge", merge);
  if (refined) words.push(...state.run.calibration);
  return words.map(quoted).join(" ");
}

async function copyCommand() {
  const text = $("command").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  $("copy").textContent = "Copied";
  setTimeout(() => { $("copy").textContent = "Copy"; }, 1500);
}

/** [layers][query heads]: the group that each head reads, K's or V's. */
function groupsOf(row, kind) {
  const layout = state.run.layouts[row.layout];
  return (kind === "v" && layout.v ? layout.v : layout.k).map((line) => [...line].map((c) => c.charCodeAt(0) - 48));
}

function drawHeads(row) {
  const kind = $("kind").value, groups = groupsOf(row, kind), most = Math.max(...groups.flat()) + 1;
  const stops = [...Array(most).keys()].flatMap((g) => [[g / most, colourOf(g)], [(g + 1) / most, colourOf(g)]]);
  const heads = headsOf(row).map(([k, v]) => (kind === "v" ? v : k));
  const layers = groups.map((_, layer) => layer);
  const label = groups[0].length <= 32 && layers.length <= 40;
  draw("heads", [
    {
      type: "heatmap", z: groups, x: groups[0].map((_, head) => head), y: layers, zmin: 0, zmax: most, colorscale: stops,
      showscale: false, xgap: 1, ygap: 1, text: groups, texttemplate: label ? "%{text}" : "", textfont: { color: "#000" },
      hovertemplate: state.run.unit + " %{y}, query head %{x}: group %{z}<extra></extra>",
    },
    {
      type: "bar", orientation: "h", x: heads, y: layers, xaxis: "x2", marker: { color: css("accent") }, showlegend: false,
      text: heads, textposition: "auto", hovertemplate: state.run.unit + " %{y}: %{x} heads<extra></extra>",
    },
  ], look({
    height: Math.max(260, 16 * layers.length + 90),
    xaxis: { title: { text: "query head" }, domain: [0, 0.78], dtick: groups[0].length > 24 ? 4 : 1 },
    xaxis2: { title: { text: `${kind.toUpperCase()} heads` }, domain: [0.82, 1], gridcolor: css("line"), rangemode: "tozero" },
    yaxis: { title: { text: state.run.unit }, autorange: "reversed", dtick: layers.length > 24 ? 4 : 1 },
  }));
  $("heads").style.height = "auto";
}
