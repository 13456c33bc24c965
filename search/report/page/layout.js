// The selected layout, and the one that it is compared with: facts, and the command that writes it.

/** [name, how it is said of a row]; rows of which nothing is known are left out. */
function factsOf(row) {
  const measured = state.run.columns.filter((column) => isMeasure(column) && column !== "error");
  return new Map([
    ["found by", [row.method, ...(row.also_found_by || "").split(";").filter(Boolean)].join(", ")],
    ["merged by", row.merge],
    [state.run.traded.split(",")[0], `${percent(sizeOf(row))}, ${inBytes(row.kv_bytes_per_token)} a token`],
    ["KV heads of a layer", headsSaid(row)],
    ["written as", row.deploy === "none" ? "nothing: K and V differ, which no engine takes" : row.deploy],
    ...["error", ...measured].map((column) => [nameOf(column), said(row, column)]),
  ]);
}

function showFacts(row) {
  const rows = shownWith(row), facts = rows.map(factsOf);
  $("title-of").textContent = rows.map(titleOf).join(" beside ").replace("layout", "Layout");
  $("facts").replaceChildren(
    ...(rows.length > 1 ? [tableRow(["", ...rows.map(titleOf)], "th")] : []),
    ...[...facts[0].keys()].map((name) => tableRow([name, ...facts.map((one) => one.get(name))]))
      .filter((tr) => [...tr.children].slice(1).some((td) => td.textContent)),
    barsOf(rows),
  );
  $("command").textContent = commandOf(row);
  const engines = (row.run.engines[row.deploy] || []).join(", ");
  const refines = commandOf(row).startsWith("grouper ") && !row.merge.endsWith("+refine");
  const sentences = [refines && "The command refines it, too: these are its figures before that.", engines && `Runs in ${engines}.`];
  $("engines").textContent = sentences.filter(Boolean).join(" ");
  $("keep").hidden = state.kept === row;
  $("drop").hidden = !state.kept;
}

function barsOf(rows) {
  const tr = tableRow(["of the original"]);
  for (const row of rows) {
    const bar = tagged("span", "", "bar"), td = tagged("td");
    bar.style.width = `${100 * Math.min(1, sizeOf(row))}%`;
    bar.title = percent(sizeOf(row));
    td.append(bar);
    tr.append(td);
  }
  return tr;
}

/** Keep a row beside which others are shown, or none. */
function keep(row) {
  state.kept = row;
  listeners.forEach((listener) => listener(state.selected));
}

const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function commandOf(row) {
  if (row.method === state.run.original) return "nothing to do: this is the model as it came";
  if (row.deploy === "none") return "no engine takes this layout: choose another one";
  const merge = row.merge.replace(/\+refine$/, "");
  const words = ["grouper", "export", row.run.run, "-o", `${row.run.model}-${row.layout}`, "--layout", String(row.layout)];
  if (merge !== row.run.merge) words.push("--merge", merge);
  words.push(...row.run.refining);
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
