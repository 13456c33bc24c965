// pareto.csv: sorted by a column, filtered by words and by comparisons such as kv_ratio<0.5.

const SHOWN = 200; // rows before "Show all"
const WORDS = new Set(["method", "merge", "deploy", "kv_heads", "also_found_by"]);
const table = { sorted: "kv_ratio", falling: true, all: false };

/** nll@0-256:TEXT and the like have a section of their own; a task's pass@1 does not. */
const isOfBand = (column) => column.split(/[:,]/)[0].includes("@");

function columnsShown() {
  return state.run.columns.filter((c) => c !== "on_front" && c !== "on_nll_front" && !isOfBand(c) && state.rows.some((row) => row[c] !== null && row[c] !== ""));
}

function matches(row, term) {
  const [, column, sign, bound] = /^([\w,:]+)(<=|>=|<|>|=)(.+)$/.exec(term) || [];
  if (column !== undefined && column in row) {
    const value = row[column], than = Number(bound);
    if (sign === "=") return String(value) === bound || value === than;
    return value !== null && (sign[0] === "<" ? value < than || (sign === "<=" && value === than) : value > than || (sign === ">=" && value === than));
  }
  return `${row.layout} ${row.method} ${row.merge} ${row.deploy} ${row.kv_heads} ${row.also_found_by}`.toLowerCase().includes(term.toLowerCase());
}

function rowsShown() {
  const terms = $("filter").value.trim().split(/\s+/).filter(Boolean);
  const measured = state.rows.some((row) => row.on_nll_front !== null);
  const rows = state.rows.filter((row) => terms.every((term) => matches(row, term)))
    .filter((row) => !$("front-only").checked || row[measured ? "on_nll_front" : "on_front"] === 1);
  const by = table.sorted, sign = table.falling ? -1 : 1;
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
  return rows.sort((a, b) => (a[by] === null) - (b[by] === null) || (a[by] === null ? 0 : sign * compare(a[by], b[by])) || a.at - b.at);
}

function drawTable() {
  const columns = columnsShown(), rows = rowsShown();
  const head = document.createElement("tr");
  for (const column of columns) {
    const th = document.createElement("th"), button = document.createElement("button");
    th.className = WORDS.has(column) ? "word" : "";
    th.ariaSort = column === table.sorted ? (table.falling ? "descending" : "ascending") : "none";
    button.type = "button";
    button.textContent = column + (column === table.sorted ? (table.falling ? " ▾" : " ▴") : "");
    button.onclick = () => {
      table.falling = column === table.sorted ? !table.falling : false;
      table.sorted = column;
      drawTable();
      [...$("table").tHead.querySelectorAll("button")][columns.indexOf(column)].focus();
    };
    th.append(button);
    head.append(th);
  }
  $("table").tHead.replaceChildren(head);
  const shown = table.all ? rows : rows.slice(0, SHOWN);
  $("table").tBodies[0].replaceChildren(...shown.map((row) => {
    const tr = document.createElement("tr");
    tr.className = `selectable${row === state.selected ? " selected" : ""}`;
    tr.tabIndex = 0;
    tr.dataset.at = row.at;
    tr.append(...columns.map((column) => {
      const td = document.createElement("td"), value = row[column];
      td.className = WORDS.has(column) ? "word" : "";
      td.textContent = typeof value === "string" && value.length > 40 ? `${value.slice(0, 38)}…` : number(value, 5);
      return td;
    }));
    return tr;
  }));
  $("count").textContent = `${rows.length} of ${state.rows.length} rows`;
  $("more").hidden = shown.length === rows.length;
}

function markSelected(row) {
  for (const tr of $("table").tBodies[0].rows) tr.classList.toggle("selected", Number(tr.dataset.at) === row.at);
}
