// The axis of what is lost: logarithmic, with a break below its least value and 0 under it.

const isLogarithmic = (measure) => $("log").checked && !isRising(measure);

/** { least, most, zero } of a measure's values; zero: the place that stands for 0 and less, where there is such. */
function span(measure) {
  const values = state.rows.map((row) => row[measure]).filter((v) => v !== null);
  const above = values.filter((v) => v > 0), least = Math.min(...above), most = Math.max(...above);
  if (!above.length || !isLogarithmic(measure)) return null;
  const broken = values.some((v) => v <= 0), gap = Math.max(0.4, 0.15 * Math.log10(most / least));
  return { least, most, zero: broken ? least / 10 ** gap : null, negative: values.some((v) => v < 0) };
}

/** Where a value stands on the axis. */
const placed = (value, within) => (within && value <= 0 ? within.zero : value);

/** Powers of ten between two values, with their doubles and fives where there are few. */
function ticks(least, most) {
  const steps = Math.log10(most / least) < 2 ? [1, 2, 5] : [1], found = [];
  for (let power = Math.floor(Math.log10(least)); power <= Math.ceil(Math.log10(most)); power += 1) {
    found.push(...steps.map((step) => Number(`${step}e${power}`)));
  }
  const inside = found.filter((value) => value >= 0.999 * least && value <= 1.001 * most);
  return inside.length ? inside : [least, most];
}

function heightAxis(measure, within) {
  const title = { text: nameOf(measure) };
  if (!within) return { title, type: "linear" };
  const { least, most, zero, negative } = within, values = ticks(least, most);
  const low = Math.log10(zero ?? least), high = Math.log10(most), room = 0.06 * (high - low) + 0.03;
  return {
    title, type: "log", range: [low - room, high + room],
    tickvals: zero === null ? values : [zero, ...values],
    ticktext: [...(zero === null ? [] : [negative ? "≤ 0" : "0"]), ...values.map((value) => number(value))],
  };
}

/** What shows that the axis is broken, halfway between 0 and the least value. */
function axisBreak(within) {
  if (!within || within.zero === null) return {};
  const at = Math.sqrt(within.zero * within.least);
  return {
    shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: at, y1: at, line: { color: css("quiet"), width: 1, dash: "dot" } }],
    annotations: [{ text: "≈", x: 0, xref: "paper", y: Math.log10(at), showarrow: false, bgcolor: css("card"), font: { size: 16 } }],
  };
}
