// Columns and numbers as people read them.

const MEASURES = {
  over: "nats over the original", nll: "nats per token", kl: "KL to the original", error: "error of the merge",
  agreement: "same likeliest token", cosine: "cosine with the original's vectors", accuracy: "accuracy",
};
const NAMES = {
  method: "found by", merge: "merged by", kv_ratio: "KV cache", weight_ratio: "K and V weights", kv_heads: "KV heads",
  kv_bytes_per_token: "cache of a token", kv_bytes_per_source_token: "cache of a source token", deploy: "written as",
  also_found_by: "also found by", weights_bytes: "model's weights", ...MEASURES,
};

/** A measurement on one of several texts is called KIND:TEXT, a task's score TASK,METRIC. */
const isMeasure = (column) => column.split(":")[0] in MEASURES || (column.includes(",") && !/stderr/.test(column));
/** Whether more of it is better. */
const isRising = (column) => column.includes(",") || ["agreement", "cosine", "accuracy"].includes(column.split(":")[0]);
/** Whether a is better than b. */
const isBetter = (column, a, b) => (isRising(column) ? a > b : a < b);

function nameOf(column) {
  const [kind, text] = column.split(":");
  return (NAMES[kind] || kind.replaceAll(",", ", ")) + (text ? `, ${text}` : "");
}

/** The digits that matter, never eight: 0.123, 1,230, 1.23e7; whole numbers below that as they are. */
function number(value, digits = 3) {
  if (typeof value !== "number") return value ?? "";
  const size = Math.abs(value);
  if (size >= 1e7 || (size < 1e-4 && size > 0)) return value.toExponential(digits - 1).replace(/\.?0*e\+?/, "e");
  return Number.isInteger(value) ? value.toLocaleString("en") : value.toLocaleString("en", { maximumSignificantDigits: digits });
}

/** Two digits of the standard error, and as many of the value; of a single window there is no error. */
function withError(value, error) {
  if (!error || error < 1e-6 || value === null) return number(value);
  const places = Math.max(0, 1 - Math.floor(Math.log10(error)));
  return `${value.toFixed(places)} ±${error.toFixed(places)}`;
}

const percent = (ratio) => `${+(100 * ratio).toFixed(1)}%`;

function inBytes(count) {
  const unit = count < 1e4 ? 0 : Math.floor(Math.log2(count) / 10);
  return `${number(count / 1024 ** unit)} ${["bytes", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

/** KV heads of each layer, K and V: [[8, 8], [8, 4], ...] */
const headsOf = (row) => row.kv_heads.split(";").map((pair) => {
  const [k, v] = pair.split("/").map(Number);
  return [k, v === undefined ? k : v];
});

/** KV heads of all layers in a few words: "16", or "4 to 16, mean 9.5". */
function headsSaid(row) {
  const each = row.kv_heads.split(";"), counts = headsOf(row).flat();
  if (each.every((one) => one === each[0])) return each[0];
  return `${Math.min(...counts)} to ${Math.max(...counts)}, mean ${number(counts.reduce((a, b) => a + b) / counts.length)}`;
}

/** A cell of a row, as it is shown. */
function said(row, column) {
  const value = row[column];
  if (value === null || value === undefined || value === "") return "";
  if (column === "kv_heads") return headsSaid(row);
  if (column.endsWith("_ratio")) return percent(value);
  if (column.includes("bytes")) return inBytes(value);
  if (column === "layout") return String(value);
  if (typeof value === "string") return value.replaceAll(";", ", ");
  return withError(value, row[row.run.errors[column]]);
}
