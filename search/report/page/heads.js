// Which heads share: a line a layer, a box a group, named by its heads.

/** [layers][query heads]: the group that each head reads, K's or V's. */
function groupsOf(row, kind) {
  const layout = row.run.layouts[row.layout];
  return (kind === "v" && layout.v ? layout.v : layout.k).map((line) => [...line].map((c) => c.charCodeAt(0) - 48));
}

const headsInGroups = (line) => {
  const groups = new Map();
  line.forEach((group, head) => groups.set(group, [...(groups.get(group) || []), head]));
  return [...groups.values()];
};

/** { kind: "KV" or "query", layers: [layers][groups][heads] }: by the original's KV heads where none of them is split. */
function namedGroups(row, kind) {
  const each = row.run.queryHeads / row.run.kvHeads, layers = groupsOf(row, kind);
  const whole = layers.every((line) => line.every((group, head) => group === line[head - (head % each)]));
  if (!whole) return { kind: "query", layers: layers.map(headsInGroups) };
  return { kind: "KV", layers: layers.map((line) => headsInGroups(line.filter((_, head) => head % each === 0))) };
}

/** Heads as people write them: [0, 1, 2, 5] is "0–2 5". */
function headsNamed(heads) {
  const runs = [];
  for (const head of heads) {
    const last = runs.at(-1);
    if (last && head === last[1] + 1) last[1] = head;
    else runs.push([head, head]);
  }
  return runs.map(([a, b]) => (a === b ? `${a}` : b === a + 1 ? `${a} ${b}` : `${a}–${b}`)).join(" ");
}

const unitNamed = (run, layer) => run.names[layer] || String(layer);

function groupsDrawn(row, kind) {
  const grid = tagged("div", "", "grid"), { kind: named, layers } = namedGroups(row, kind), counts = headsOf(row);
  const letter = kind.toUpperCase(), heads = `${named} heads that share one ${letter} head`;
  grid.append(tagged("b", row.run.unit), tagged("b", state.kept ? `${titleBeside(row)}: ${heads}` : heads), tagged("b", letter));
  layers.forEach((groups, layer) => {
    const line = tagged("div", "", "groups");
    groups.forEach((members, at) => {
      const box = tagged("span", headsNamed(members), `group ${members.length > 1 ? "" : "alone"} ${members.length > 6 ? "many" : ""}`);
      box.style.flexGrow = members.length;
      if (members.length > 1) box.style.borderColor = colourOf(at);
      box.title = `${row.run.unit} ${unitNamed(row.run, layer)}: ${named} head${members.length > 1 ? "s" : ""} ${headsNamed(members)}`;
      line.append(box);
    });
    const [k, v] = counts[layer];
    grid.append(tagged("span", unitNamed(row.run, layer), "of"), line, tagged("span", String(kind === "v" ? v : k), "count"));
  });
  return grid;
}

function drawHeads(row) {
  const rows = shownWith(row), apart = rows.some((one) => one.run.layouts[one.layout].v);
  $("kind-label").hidden = !apart;
  $("kind-said").hidden = apart;
  $("heads").replaceChildren(...rows.map((one) => groupsDrawn(one, apart ? $("kind").value : "k")));
}
