// What the selected layout loses by position within windows, where these were long enough to tell.

/** Each text's bands: [{ text, bands: [{ name, column, error }] }]; of several texts each, of one that one. */
function bandsOfTexts() {
  const texts = new Map();
  for (const column of state.run.columns) {
    const [, band, text = ""] = /^nll@(\d+-\d+)(?::(.*))?$/s.exec(column) || [];
    if (!band) continue;
    if (!texts.has(text)) texts.set(text, []);
    texts.get(text).push({ name: band, column, error: column.replace("nll@", "nll_se@") });
  }
  if (texts.size > 1) texts.delete(""); // their mean
  return [...texts].map(([text, bands]) => ({ text, bands }));
}

/** Nats over the original of each text: [{ text, bands, over, error }]; nothing where the row was not measured so. */
function lossesByPosition(row) {
  const original = state.rows.find((other) => other.method === state.run.original);
  if (!original || row === original) return [];
  return bandsOfTexts().map(({ text, bands }) => ({
    text, bands: bands.map((band) => band.name), error: bands.map((band) => row[band.error] ?? 0),
    over: bands.map((band) => (row[band.column] ?? null) === null || original[band.column] === null ? null : row[band.column] - original[band.column]),
  })).filter(({ over }) => over.length && over.every((value) => value !== null));
}

function drawPositions(row) {
  const losses = lossesByPosition(row);
  draw("positions", losses.map(({ text, bands, over, error }, at) => ({
    name: text || "all text", type: "bar", x: bands, y: over, marker: { color: COLOURS[at % COLOURS.length] },
    error_y: { type: "data", array: error, visible: true, color: css("ink") },
    hovertemplate: `${text || "nats over the original"}, at %{x}: %{y:.4f}<extra></extra>`,
  })), look({
    barmode: "group", legend: legend(), showlegend: losses.length > 1, xaxis: { title: { text: "position within the window" }, type: "category" },
    yaxis: { title: { text: "nats over the original" } },
  }));
  const said = losses.map(({ text, bands, over }) => `${text ? `${text}: ` : ""}${bands.map((band, i) => `${number(over[i])} at ${band}`).join(", ")}`);
  $("positions-said").textContent = said.join("; ");
}
