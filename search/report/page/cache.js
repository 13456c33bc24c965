// What the cache takes at a batch and context, and how many sequences a card holds.

function cacheOf(row, context) {
  const windows = state.run.windows || headsOf(row).map(() => null);
  const numbers = headsOf(row).reduce((sum, [k, v], layer) => sum + (k + v) * Math.min(context, windows[layer] ?? context), 0);
  return numbers * state.run.headDim * state.run.bytes;
}

function showCache(row) {
  const [batch, context, card] = ["batch", "context", "card"].map((id) => Math.max(1, Number($(id).value) || 1));
  const original = state.rows.find((one) => one.method === state.run.original);
  const of = (one) => {
    const bytes = cacheOf(one, context), room = state.run.usable * card * 1e9 - (one.weights_bytes || 0);
    const largest = one.weights_bytes === null || !bytes ? "" : Math.max(0, Math.floor(room / bytes)).toLocaleString("en");
    return [(batch * bytes / 2 ** 30).toPrecision(4), largest];
  };
  $("cache").replaceChildren(
    tableRow(["", "cache, GiB", "largest batch on the card"], "th"),
    ...(original ? [tableRow(["original", ...of(original)])] : []), tableRow([`layout ${row.layout}`, ...of(row)]),
  );
}
