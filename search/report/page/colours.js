// Okabe and Ito's colours, which colour-blind people can tell apart; groups beyond eight come in lighter shades.

const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a800", "#7f7f7f"];
const SYMBOLS = { stock: "square", padded: "triangle-up", ragged: "circle", none: "x" };
const SIGNS = { stock: "■", padded: "▲", ragged: "●", none: "✕" }; // the same in a key
const PALE = 0.35;

function shade(hex, share) {
  const mixed = [1, 3, 5].map((at) => {
    const part = parseInt(hex.slice(at, at + 2), 16);
    return Math.round(part + (255 - part) * share).toString(16).padStart(2, "0");
  });
  return `#${mixed.join("")}`;
}

const colourOf = (group) => shade(COLOURS[group % COLOURS.length], 0.22 * (Math.floor(group / COLOURS.length) % 4));

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** What all plots share, in the colours of the page as it is now. */
function look(more = {}) {
  const axis = { gridcolor: css("line"), zerolinecolor: css("line"), linecolor: css("line"), automargin: true };
  const { xaxis = {}, yaxis = {}, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("ink"), family: "inherit", size: 13 },
    margin: { l: 50, r: 15, t: narrow() ? 10 : 30, b: 45 }, hoverlabel: { align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("quiet"), activecolor: css("accent") },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

const narrow = () => innerWidth < 800;

/** Beside a plot, as text that wraps: entries { text, sign, colour, pale, toggle }. */
function key(id, entries) {
  $(id).replaceChildren(...entries.map(({ text, sign = "■", colour = css("ink"), pale, off, toggle }) => {
    const entry = tagged(toggle ? "button" : "span", "", off ? "entry off" : "entry"), mark = tagged("span", sign, "sign");
    mark.style.color = colour;
    mark.style.opacity = pale ? PALE : 1;
    if (toggle) Object.assign(entry, { type: "button", ariaPressed: String(!off), onclick: toggle });
    entry.append(mark, tagged("span", text));
    return entry;
  }));
}

const draw = (id, traces, layout) => Plotly.react($(id), traces, { showlegend: false, ...layout }, {
  responsive: true, displaylogo: false, displayModeBar: !narrow(), modeBarButtonsToRemove: ["lasso2d", "select2d"],
});
