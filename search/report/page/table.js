// pareto.csv: sorted by a column, filtered by words and by comparisons such as kv_ratio<0.5.

const SHOWN = 200; // rows before "Show all"
const WORDS = new Set(["method", "merge", "deploy", "kv_heads", "also_found_by"]);
const FIRST = ["layout", "method", "merge", "kv_ratio", "weight_ratio", "over"];
const LAST = ["deploy", "kv_heads", "kv_bytes_per_token", "kv_bytes_per_source_token", "error", "weights_bytes", "also_found_by"];
const table = { sorted: null, falling: true, all: false };

/** nll@0-256:TEXT and the like have a section of their own; a task's pass@1 does not. */
const isOfBand = (column) => column.split(/[:,]/)[0].includes("@");
const isError = (column) => Object.values(state.run.errors).includes(column);

/** What is measured behind what tells layouts apart, and the rest behind that; standard errors stand in the cells of
    their columns. */
function columnsShown() {
  const known = state.run.columns.filter((c) => !["on_front", "on_nll_front"].includes(c) && !isOfBand(c) && !isError(c)
    && state.rows.some((row) => row[c] !== null && row[c] !== ""));
  const place = (c) => (FIRST.includes(c) ? FIRST.indexOf(c) : LAST.includes(c) ? 1000 + LAST.indexOf(c) : 100 + known.indexOf(c));
  return known.sort((a, b) => place(a) - place(b));
}

function matches(row, term) {
  const [, column, sign, bound] = /^([\w,:]+)(<=|>=|<|>|=)(.+)$/.exec(term) || [];
  if (column !== undefined && column in row) {
    const value = row[column], than = Number(bound);
    if (sign === "=") return String(value) === bound || value === than;
    return value !== null && (sign[0] === "<" ? value < than || (sign === "<=" && value === than) : value > than || (sign === ">=" && value === than));
  }
  return `${titleOf(row)} ${row.method} ${row.merge} ${row.deploy} ${row.kv_heads} ${row.also_found_by}`.toLowerCase().includes(term.toLowerCase());
}

/** Before a column is chosen: measured rows first, the large ones of them at the top. */
function inOrder(rows) {
  const by = table.sorted ?? state.run.size, sign = table.falling ? -1 : 1;
  const columns = table.sorted ? [] : measures().filter((column) => column !== "error");
  const unmeasured = new Map(rows.map((row) => [row, columns.length > 0 && columns.every((column) => row[column] === null)]));
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
  return rows.sort((a, b) => unmeasured.get(a) - unmeasured.get(b) || (a[by] === null) - (b[by] === null)
    || (a[by] === null ? 0 : sign * compare(a[by], b[by])) || a.at - b.at);
}

function rowsShown() {
  const terms = $("filter").value.trim().split(/\s+/).filter(Boolean);
  const measured = state.rows.some((row) => row.on_nll_front !== null);
  return inOrder(state.rows.filter((row) => terms.every((term) => matches(row, term)))
    .filter((row) => !$("front-only").checked || row[measured ? "on_nll_front" : "on_front"] === 1));
}

function headOf(columns) {
  const head = tagged("tr");
  columns.forEach((column, at) => {
    const sorted = column === table.sorted, th = tagged("th", "", WORDS.has(column) ? "word" : "");
    const button = tagged("button", nameOf(column) + (sorted ? (table.falling ? " ▾" : " ▴") : ""));
    th.ariaSort = sorted ? (table.falling ? "descending" : "ascending") : "none";
    th.title = column;
    button.type = "button";
    button.onclick = () => {
      table.falling = sorted ? !table.falling : false;
      table.sorted = column;
      drawTable();
      $("table").tHead.querySelectorAll("button")[at].focus();
    };
    th.append(button);
    head.append(th);
  });
  return head;
}

function drawTable() {
  const columns = columnsShown(), rows = rowsShown(), shown = table.all ? rows : rows.slice(0, SHOWN);
  $("table").tHead.replaceChildren(headOf(columns));
  $("table").tBodies[0].replaceChildren(...shown.map((row) => {
    const tr = tagged("tr", "", `selectable${row === state.selected ? " selected" : ""}`);
    tr.tabIndex = 0;
    tr.dataset.at = row.at;
    tr.append(...columns.map((column) => {
      const td = tagged("td", said(row, column), WORDS.has(column) ? "word" : "");
      if (column === "layout" && row.run.name) td.textContent += `, ${row.run.name}`;
      if (column === "kv_heads") td.title = row.kv_heads;
      return td;
    }));
    return tr;
  }));
  $("count").textContent = `${number(rows.length)} of ${number(state.rows.length)} rows`;
  $("more").hidden = shown.length === rows.length;
}

function markSelected(row) {
  for (const tr of $("table").tBodies[0].rows) tr.classList.toggle("selected", Number(tr.dataset.at) === row.at);
}
