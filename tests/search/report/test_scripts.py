"""The page's scripts by themselves, in Node: what they compute of rows whose numbers are known."""

import json
import shutil
import subprocess

import pytest
from tiny_models import ROOT

from search.report.page import SCRIPTS, packed

PAGE = ROOT / "search" / "report" / "page"
BROWSER = """
const elements = {}, drawn = {}, asked = {hash: ""};
const element = (tag) => ({
  tag, style: {}, dataset: {}, children: [], value: "", textContent: "", hidden: false, checked: false,
  classList: {toggle() {}}, addEventListener() {}, on() {}, focus() {}, querySelectorAll() { return []; },
  append(...more) { this.children.push(...more); }, replaceChildren(...more) { this.children = more; },
  get rows() { return this.children; },
  get tHead() { return this.head ||= element("thead"); }, get tBodies() { return [this.body ||= element("tbody")]; },
});
globalThis.document = {
  getElementById: (id) => (elements[id] ||= element(id)), createElement: element, documentElement: element("html"),
  head: element("head"), querySelectorAll: () => [], addEventListener() {},
};
globalThis.matchMedia = () => ({addEventListener() {}});
globalThis.Plotly = {react: (at, traces, layout) => { drawn[at.tag] = {traces, layout}; }};
globalThis.getComputedStyle = () => ({getPropertyValue: () => "#000"});
globalThis.IntersectionObserver = class { observe() {} unobserve() {} };
globalThis.history = {replaceState() {}};
globalThis.location = asked;
globalThis.Option = class { constructor(text, value) { this.text = text; this.value = value; } };
globalThis.innerWidth = 1400;
"""
START = """
state.run = RUN;
state.rows = rowsOf(state.run);
for (const [id, value] of Object.entries(CONTROLS)) $(id)[typeof value === "boolean" ? "checked" : "value"] = value;
const cells = (id) => $(id).children.map((tr) => tr.children.map((td) => td.textContent));
"""
COLUMNS = [
    "layout", "method", "merge", "kv_ratio", "kv_bytes_per_token", "kv_heads", "error", "deploy", "nll", "on_front",
    "on_nll_front", "also_found_by", "weights_bytes", "agreement", "over",
]  # fmt: skip
ROWS = [  # 2 layers of 8 query heads over 4 KV heads of 16, a byte a number
    [0, "original", "mean", 1, 256, "4;4", 0, "stock", 2.0, 1, 1, "", 4_000_000, 1, 0],
    [1, "qcqa-ac", "mean", 0.75, 192, "4;2", 0.5, "ragged", 2.5, 0, 1, "ward;exact", 3_000_000, 0.9, 0.5],
    [2, "qcqa-ac", "mean", 0.5, 128, "2;2", 1.5, "stock", 2.75, 1, 0, "", 2_000_000, 0.7, 0.75],
    [2, "qcqa-ac", "spectral+refine", 0.5, 128, "2;2", 1.5, "stock", 2.25, 0, 1, "", 2_000_000, 0.8, 0.25],
    [3, "separate", "mean", 0.5, 128, "3/1;2", 1.0, "none", 2.1, 1, 0, "", 2_500_000, 0.95, 0.1],
    [4, "neighbour", "mean", 0.25, 64, "1;1", 9.0, "stock", 8.0, 0, 0, "", None, 0.1, 6.0],
    [5, "qcqa-ac", "mean", 0.25, 64, "1;1", 4.0, "stock", 3.5, 1, 1, "", None, 0.5, 1.5],
]
RUN = {
    "model": "tiny", "run": "runs/it's", "layers": 2, "queryHeads": 8, "kvHeads": 4, "headDim": 16, "bytes": 1,
    "usable": 0.9, "windows": [None, 8], "context": 64, "size": "kv_ratio",
    "original": "original", "baselines": ["neighbour"],
    "merge": "mean", "refining": ["--text", "a b.txt"], "first": 3, "engines": {"stock": ["transformers", "vLLM"]},
    "traded": "KV cache, of the original's", "unit": "layer", "names": [], "columns": COLUMNS, "rows": ROWS,
    "layouts": {"2": {"k": ["00112233", "00110011"], "v": None}, "3": {"k": ["00112222"] * 2, "v": ["00000011"] * 2}},
    "landscape": {
        "layer": [0, 0, 1, 1], "kv_heads": [1, 2, 1, 2], "error": [10.0, 1.0, 100.0, 0.5],
        "k_error": [1.0, 0.1, 99.0, None],
    },
    "progress": [
        {"method": ["a", "b", "a"], "scored": [1, 2, 3], "error": [4.0, 5.0, 1.0]},
        {"method": ["a", "a"], "scored": [1, 5], "error": [8.0, 4.0]},
    ],
    "refined": {
        "layout": [2, 2, 2, 1], "merge": ["spectral+refine", "spectral+refine", "mean+refine", "spectral+refine"],
        "layer": [0, 1, 0, 0], "before": [0.5, 0.6, 0.9, 7.0], "after": [0.1, 0.2, 0.8, 6.0],
    },
    "positions": [[] for _ in ROWS],
    "similarity": [{kind: {when: [100 * base + i for i in range(16)] for base, when in enumerate(("before", "aligned"))}
                    for kind in "kv"}] * 2,
}  # fmt: skip


def run(script: str, more: dict | None = None, **controls):
    """What a script returns of the page's functions. more: other facts of the run; controls: what is typed."""
    node = shutil.which("node")
    if not node:
        pytest.skip("no Node here: apt-get install nodejs")
    sources = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    assert sources.rstrip().endswith("\nopen();")
    start = START.replace("RUN", json.dumps({**RUN, **(more or {})})).replace("CONTROLS", json.dumps(controls))
    body = f"{BROWSER}\n{sources.rstrip().removesuffix('open();')}\n{start}\n(async () => {{ {script} }})()"
    code = f"eval({json.dumps(body)}).then((found) => process.stdout.write(JSON.stringify(found)));"
    done = subprocess.run([node, "-"], input=code, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_cache_counts_k_v_windows_and_what_else_is_on_the_card():
    """Layout 3 at 64 tokens: 3 K and 1 V heads for 64 tokens, 2 and 2 within a window of 8: (4 x 64 + 4 x 8) x 16 bytes
    a sequence. 90% of 1 GB, less the weights, holds (0.9e9 - 2.5e6) / 4608 of them."""
    show = "showCache(state.rows[4]); return cells('cache');"
    original = 8 * (64 + 8) * 16
    assert run(show, batch="2048", context="64", card="1") == [
        ["", "cache, GiB", "largest batch on the card"],
        ["original", f"{2048 * original / 2**30:#.4g}", f"{int((0.9e9 - 4e6) // original):,}"],
        ["layout 3", f"{2048 * 4608 / 2**30:.6f}", f"{int((0.9e9 - 2.5e6) // 4608):,}"],
    ]
    assert run(show, batch="1", context="64", card="1", more={"bytes": 4})[2][2] == f"{int(897.5e6 // 18432):,}"
    assert run("return cacheOf(state.rows[4], 64);", {"windows": None}) == 8 * 64 * 16
    assert run("showCache(state.rows[6]); return cells('cache')[2][2];", batch="1", context="4", card="1") == ""


def test_an_encoder_keeps_no_cache():
    assert run("return cacheOf(state.rows[0], 64);", {"windows": [0, None]}) == 8 * 64 * 16
    shown = run("showCache(state.rows[0]); return cells('cache')[1];", {"windows": [0, 0]}, card="1")
    assert shown == ["original", "0.000", ""], "as many as one likes"


def test_the_command_is_the_one_that_writes_this_row():
    command = "return state.rows.map(commandOf);"
    found = run(command)
    assert found[0].startswith("nothing to do") and found[4].startswith("no engine takes")
    assert found[1] == """grouper export 'runs/it'\\''s' -o tiny-1 --layout 1 --text 'a b.txt'"""
    refined = found[3]
    assert refined == """grouper export 'runs/it'\\''s' -o tiny-2 --layout 2 --merge spectral --text 'a b.txt'"""
    assert "--merge mean" in run(command, {"merge": "spectral"})[1] and "--merge" not in run(
        command, {"merge": "spectral"}
    )[3]  # fmt: skip


def test_facts_of_a_row():
    script = (
        "showFacts(state.rows[1]); return [$('facts').children.map((c) => c.textContent), $('engines').textContent];"
    )
    facts, engines = run(script)
    said = dict(zip(facts[::2], facts[1::2]))
    assert said["found by"] == "qcqa-ac, ward, exact" and said["KV cache"] == "75%, 192 bytes a token"
    assert (said["written as"], said["error"], said["nats over the original"]) == ("ragged", "0.5", "0.5")
    assert engines.strip() == "The command refines it, too: these are its figures before that."
    assert run(script.replace("[1]", "[3]"))[1].strip() == "Runs in transformers, vLLM.", "refined already"


def test_heads_lie_in_the_order_of_groups():
    """Query heads come two a KV head: layer 1's groups are 0 1 0 1."""
    script = "return [0, 1].map((layer) => order(state.rows[2], layer, 'k')).concat([order(state.rows[4], 0, 'v')]);"
    assert run(script) == [[0, 1, 2, 3], [0, 2, 1, 3], [0, 1, 2, 3]]
    script = "drawSimilarity(state.rows[2]); return drawn.similarity.traces.map((t) => t.z[1]);"
    # row of KV head 2: cosines 8, 10, 9, 11 of a hundred, and a hundred more where they are aligned
    assert run(script, layer="1") == [[0.08, 0.1, 0.09, 0.11], [1.08, 1.1, 1.09, 1.11]] * 2
    script = "drawHeads(state.rows[4]); return drawn.heads.traces.map((t) => t.z ? t.z[0] : t.x);"
    assert run(script, kind="k") == [[0, 0, 1, 1, 2, 2, 2, 2], [3, 2]]
    assert run(script, kind="v") == [[0, 0, 0, 0, 0, 0, 1, 1], [1, 2]]


@pytest.mark.parametrize(
    ("part", "grid", "heads"),
    [
        ("error", [[1, 2], [0, -0.30103]], ["3", "2"]), ("k", [[0, 1.99564], [-1, None]], ["3", "2"]),
        ("v", [[0.95424, 0], [-0.04576, None]], ["1", "2"]),
    ],
)  # fmt: skip
def test_the_landscape_is_logarithms_of_errors(part, grid, heads):
    script = "drawLandscape(state.rows[4]); return drawn.landscape.traces.map((t) => t.z || t.y);"
    drawn, marked = run(script, part=part)
    assert [[v if v is None else pytest.approx(v, abs=1e-5) for v in row] for row in grid] == drawn and marked == heads


def test_progress_is_relative_to_each_layers_first_generation():
    drawn = run("drawProgress(); return drawn.progress.traces.map((t) => [t.name, t.x, t.y]);")
    assert drawn == [["a", [1, 3, 1, 5], [1, 0.25, 1, 0.5]], ["b", [2], [1]]]


def test_refinement_is_that_of_the_rows_layout_and_merge():
    script = "drawRefined(state.rows[AT]); return drawn.refined.traces.map((t) => [t.name, t.x, t.y]);"
    refined = run(script.replace("AT", "3"))
    assert refined == [["merged", [0, 1], [0.5, 0.6]], ["refined", [0, 1], [0.1, 0.2]]]
    assert run(script.replace("AT", "2")) == [["merged", [0], [0.9]], ["refined", [0], [0.8]]]
    hidden = "showSections(state.rows[AT]); return $('refined-section').hidden;"
    assert [run(hidden.replace("AT", str(i))) for i in (2, 4)] == [False, True]


def test_lines_join_the_best_of_each_size():
    """Each by its own measure: errors and nats fall, agreement rises; half of the least stands for nothing."""
    script = """drawFront(); return drawn.front.traces.filter((t) => t.mode === "lines").map((t) => [t.x, t.y]);"""
    assert run(script, measure="over", log=True)[0] == [[0.25, 0.5, 0.75], [1.5, 0.75, 0.5]]
    rising = run(script, {"rows": [*ROWS, [6, *ROWS[2][1:6], 0.1, *ROWS[2][7:13], 0.99, 0.7]]}, measure="agreement")
    assert rising[0] == [[0.25, 0.5, 0.75], [0.5, 0.99, 0.9]]
    least = run("drawFront(); return drawn.front.traces[0].y;", measure="over", log=True)
    assert least == [0.05] and run("drawFront(); return drawn.front.traces[0].y;", measure="over", log=False) == [0]
    opacity = "drawFront(); return drawn.front.traces[1].marker.opacity;"
    assert run(opacity, measure="nll") == [1, 0.35, 1] and run(opacity, measure="error") == [0.35, 1, 1]


def test_what_can_be_measured_by():
    assert run("return measures();") == ["over", "error", "nll", "agreement"]
    searched = [[*row[:8], None, row[9], None, *row[11:13], None, None] for row in ROWS]
    assert run("return measures();", {"rows": searched}) == ["error"]
    names = ["nll", "kl:wiki", "piqa,acc", "piqa,acc_stderr", "agreement_se", "kv_ratio"]
    assert run(f"return {json.dumps(names)}.map(isMeasure);") == [True, True, True, False, False, False]
    assert run(f"return {json.dumps(names)}.map(isRising);")[:3] == [False, False, True]


def test_arrow_keys_go_to_the_next_of_the_front():
    script = "state.selected = state.rows[AT]; step(BY); return state.selected.at;"

    def step(at: int, by: int, measure: str = "nll") -> int:
        return run(script.replace("AT", str(at)).replace("BY", str(by)), measure=measure)

    assert [step(3, 1), step(3, -1), step(1, 1), step(6, -1)] == [1, 6, 1, 6], "by nats 6, 3, 1"
    assert [step(2, 1), step(2, -1)] == [1, 6], "from beside the front to the next beyond"
    assert step(2, -1, "error") == 6


def test_the_page_opens_at_the_row_that_an_export_at_half_takes_or_that_the_address_names():
    script = "return firstSelected().at;"
    assert run(script, measure="nll") == 3 and run(script, {"first": 2}, measure="error") == 2
    assert run(f"asked.hash = '#layout=2&merge=spectral%2Brefine'; {script}", measure="error") == 3
    assert run(f"asked.hash = '#layout=1'; {script}", measure="error") == 1


@pytest.mark.parametrize(
    ("words", "front", "wanted"),
    [
        ("", False, [0, 1, 2, 3, 4, 5, 6]), ("kv_ratio<0.5", False, [5, 6]), ("kv_ratio<=0.5 qcqa", False, [2, 3, 6]),
        ("nll>2.5", False, [2, 5, 6]), ("nll>=2.5", False, [1, 2, 5, 6]), ("layout=2", False, [2, 3]),
        ("EXACT", False, [1]), ("weights_bytes<1e9", False, [0, 1, 2, 3, 4]), ("", True, [0, 1, 3, 6]),
    ],
)  # fmt: skip
def test_the_table_is_filtered(words, front, wanted):
    assert run("return rowsShown().map((r) => r.at).sort();", {}, filter=words, **{"front-only": front}) == wanted


def test_the_table_is_sorted_with_what_is_empty_at_its_end():
    script = "table.sorted = 'weights_bytes'; table.falling = FALLS; return rowsShown().map((r) => r.at);"
    assert run(script.replace("FALLS", "false")) == [2, 3, 4, 1, 0, 5, 6]
    assert run(script.replace("FALLS", "true")) == [0, 1, 4, 2, 3, 5, 6]
    searched = [[*row[:10], None, *row[11:]] for row in ROWS]
    front = run("return rowsShown().map((r) => r.at);", {"rows": searched}, **{"front-only": True})
    assert sorted(front) == [0, 2, 4, 6], "by errors, as long as nothing was measured"
    shown = "state.rows[0].on_front = 1; return columnsShown();"
    assert "on_front" not in run(shown) and "also_found_by" in run(shown)


def test_numbers_are_short():
    values = run("return [number(1234567), number(0.123456), number(0.123456, 2), number(null), percent(0.12345)];")
    assert values == ["1,234,567", "0.1235", "0.12", "", "12.3%"]
    assert run("return headsOf(state.rows[4]);") == [[3, 1], [2, 2]]


def test_the_page_opens_on_what_is_packed_in_it():
    about = {"fitness": "weight", "text": "demo", "command": "grouper search x", "missing": "it is gone"}
    script = f"""
      $("library").textContent = "{packed("library")}";
      $("data").textContent = "{packed(json.dumps({**RUN, **about}))}";
      await open();
      const page = [document.documentElement.dataset.ready, document.head.children[0].textContent];
      const told = ["about", "made", "missing"].map((id) => $(id).textContent);
      return [...told, $("context").value, $("layer").max, ...page];
    """
    said = "2 layers, 8 query heads over 4 KV heads of 16; weight fitness, calibrated on demo"
    assert run(script) == [said, "grouper search x", "it is gone", 64, 1, "yes", "library"]


def test_where_an_encoder_was_grouped_the_page_goes_by_its_weights():
    """They are what the axis says: the caches of such layouts may be all the same."""
    columns = [*COLUMNS, "weight_ratio"]
    rows = [[*row[:3], 1, *row[4:], weight] for row, weight in zip(ROWS, [1, 0.9, 0.5, 0.4, 0.3, 0.6, 0.7])]
    more = {"columns": columns, "rows": rows, "size": "weight_ratio", "traded": "weights of K and V, of the original's"}
    lines = """drawFront(); return drawn.front.traces.filter((t) => t.mode === "lines").map((t) => t.x);"""
    assert run(lines, more, measure="nll")[0] == [0.5, 0.7, 0.9]
    assert run("drawFront(); return drawn.front.traces[0].x;", more, measure="nll") == [1]
    assert run("return along().map((row) => row.at);", more, measure="nll") == [3, 6, 1]
    said = run("showFacts(state.rows[2]); return $('facts').children.map((c) => c.textContent);", more)
    assert said[said.index("weights of K and V") + 1] == "50%, 128 bytes a token"


ONE_TEXT = {"text": "", "bands": ["0-256", "256-512"], "over": [0.5, -0.25], "error": [0.125, None]}
WIKI, CODE = {**ONE_TEXT, "text": "wiki"}, {**ONE_TEXT, "text": "code", "over": [0.75, 1.0], "error": [0.0625, 0.5]}


def by_position(*series: dict) -> dict:
    """The run where row 1 alone was measured so."""
    return {"positions": [list(series) if at == 1 else [] for at in range(len(ROWS))]}


def test_losses_by_position_are_bars_with_errors_and_a_table():
    script = (
        "drawPositions(state.rows[1]); showPositions(state.rows[1]); const { traces, layout } = drawn.positions;"
        "return [traces.map((t) => [t.name, t.x, t.y, t.error_y.array, t.customdata]), layout.showlegend,"
        " cells('positions-table'), new Set(traces.map((t) => t.marker.color)).size];"
    )
    bands, said = ["0-256", "256-512"], ["+0.5000 ±0.1250", "-0.2500"]
    assert run(script, by_position(ONE_TEXT)) == [
        [["all text", bands, [0.5, -0.25], [0.125, None], said]], False,
        [["position", "nats over the original"], [bands[0], said[0]], [bands[1], said[1]]], 1,
    ]  # fmt: skip
    traces, legend, cells, colours = run(script, by_position(WIKI, CODE))
    assert [trace[0] for trace in traces] == ["wiki", "code"] and legend and colours == 2
    assert cells == [
        ["position", "wiki", "code"], ["0-256", said[0], "+0.7500 ±0.0625"], ["256-512", said[1], "+1.0000 ±0.5000"]
    ]  # fmt: skip


def test_where_no_positions_were_measured_nothing_of_them_is_shown():
    script = (
        "showPositions(state.rows[1]); showPositions(state.rows[AT]); showSections(state.rows[AT]);"
        "return [$('positions-section').hidden, cells('positions-table').length];"
    )
    assert run(script.replace("AT", "1"), by_position(ONE_TEXT)) == [False, 3]
    assert run(script.replace("AT", "2"), by_position(ONE_TEXT)) == [True, 0], "nor what the row before had"
    assert run(script.replace("AT", "1")) == [True, 0]


def test_bands_are_kept_out_of_the_table_and_out_of_the_measures_but_no_task_is():
    more = ["nll@0-256", "nll_se@0-256", "nll@0-256:wiki", "nll_se@0-256:wiki", "humaneval,pass@1"]
    known = {"columns": [*COLUMNS, *more], "rows": [[*row, 2.0, 0.5, 2.0, 0.5, 0.25] for row in ROWS]}
    assert run("return columnsShown().filter((c) => c.includes('@'));", known) == ["humaneval,pass@1"]
    assert run("return measures().filter((c) => c.includes('@'));", known) == ["humaneval,pass@1"]
