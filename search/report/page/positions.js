// Where in a window the selected layout loses, where windows were long enough to tell.

/** Nats over the original: [{ name, bands, over, error }], of each text and row; none where it was not measured so. */
function lossesByPosition(row) {
  const rows = shownWith(row);
  return rows.flatMap((one) => one.run.positions[one.index].map(({ text, ...losses }) => ({
    ...losses, name: [text, rows.length > 1 && titleBeside(one)].filter(Boolean).join(", "),
  })));
}

/** The difference with its sign. */
const difference = (value, error) => (value < 0 ? "" : "+") + withError(value, error);

function drawPositions(row) {
  const losses = lossesByPosition(row);
  key("positions-key", losses.length > 1 ? losses.map(({ name }, at) => ({ text: name, colour: COLOURS[at % COLOURS.length] })) : []);
  draw("positions", losses.map(({ name, bands, over, error }, at) => ({
    name: name || "all text", type: "bar", x: bands, y: over, marker: { color: COLOURS[at % COLOURS.length] },
    error_y: { type: "data", array: error, visible: true, color: css("ink") },
    customdata: over.map((value, i) => difference(value, error[i])),
    hovertemplate: `${name ? `${name}, ` : ""}%{x}: %{customdata}<extra></extra>`,
  })), look({
    barmode: "group", xaxis: { title: { text: "position within the window" }, type: "category", tickfont: { size: narrow() ? 10 : 13 } },
    yaxis: { title: { text: "nats over the original" }, nticks: 6 },
  }));
}

/** The same as text, at once: who does not see the plot does not scroll to it either. */
function showPositions(row) {
  const losses = lossesByPosition(row), bands = [...new Set(losses.flatMap((one) => one.bands))];
  const at = ({ over, error, bands: own }, band) => (own.includes(band) ? difference(over[own.indexOf(band)], error[own.indexOf(band)]) : "");
  $("positions-table").replaceChildren(...(bands.length ? [
    tableRow(["position", ...losses.map(({ name }) => name || "nats over the original")], "th"),
    ...bands.map((band) => tableRow([band, ...losses.map((one) => at(one, band))])),
  ] : []));
}
