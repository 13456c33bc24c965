// What the selected layout loses by position within windows, where these were long enough to tell.

/** Nats over the original of each text: [{ text, bands, over, error }]; none where the row was not measured so. */
const lossesByPosition = (row) => state.run.positions[row.at];

/** As `evaluate` prints it; of a single window there is no standard error. */
const withError = (value, error) => `${value < 0 ? "" : "+"}${value.toFixed(4)}${error === null ? "" : ` ±${error.toFixed(4)}`}`;

function drawPositions(row) {
  const losses = lossesByPosition(row);
  draw("positions", losses.map(({ text, bands, over, error }, at) => ({
    name: text || "all text", type: "bar", x: bands, y: over, marker: { color: COLOURS[at % COLOURS.length] },
    error_y: { type: "data", array: error, visible: true, color: css("ink") },
    customdata: over.map((value, i) => withError(value, error[i])),
    hovertemplate: `${text ? `${text}, ` : ""}%{x}: %{customdata}<extra></extra>`,
  })), look({
    barmode: "group", legend: legend(), showlegend: losses.length > 1, xaxis: { title: { text: "position within the window" }, type: "category" },
    yaxis: { title: { text: "nats over the original" } },
  }));
}

/** The same as text, at once: who does not see the plot does not scroll to it either. */
function showPositions(row) {
  const losses = lossesByPosition(row), [first] = losses;
  $("positions-table").replaceChildren(...(first ? [
    tableRow(["position", ...losses.map(({ text }) => text || "nats over the original")], "th"),
    ...first.bands.map((band, i) => tableRow([band, ...losses.map(({ over, error }) => withError(over[i], error[i]))])),
  ] : []));
}
