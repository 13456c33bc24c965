// What the cache takes at a batch and context, and how many sequences a card holds.

function cacheOf(row, context) {
  const windows = row.run.windows || headsOf(row).map(() => null);
  const numbers = headsOf(row).reduce((sum, [k, v], layer) => sum + (k + v) * Math.min(context, windows[layer] ?? context), 0);
  return numbers * row.run.headDim * row.run.bytes;
}

function showCache(row) {
  const [batch, context, card] = ["batch", "context", "card"].map((id) => Math.max(1, Number($(id).value) || 1));
  const of = (one) => {
    const bytes = cacheOf(one, context), room = one.run.usable * card * 1e9 - (one.weights_bytes || 0);
    const largest = one.weights_bytes === null || !bytes ? "" : number(Math.max(0, Math.floor(room / bytes)));
    return [inBytes(batch * bytes), largest];
  };
  const original = state.rows.find((one) => one.run === row.run && one.method === row.run.original);
  $("cache").replaceChildren(
    tableRow(["", "cache", "largest batch on the card"], "th"),
    ...(original ? [tableRow(["original", ...of(original)])] : []),
    ...shownWith(row).map((one) => tableRow([titleOf(one), ...of(one)])),
  );
}
