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
let url = "";
globalThis.history = {replaceState: (data, title, to) => { url = to; }};
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
    "name": "", "model": "tiny", "run": "runs/it's", "errors": {}, "samples": [],
    "layers": 2, "queryHeads": 8, "kvHeads": 4, "headDim": 16, "bytes": 1,
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
        ["", "cache", "largest batch on the card"],
        ["original", f"{2048 * original / 2**20:.3g} MiB", f"{int((0.9e9 - 4e6) // original):,}"],
        ["layout 3", f"{2048 * 4608 / 2**20:.3g} MiB", f"{int((0.9e9 - 2.5e6) // 4608):,}"],
    ]
    assert run(show, batch="1", context="64", card="1", more={"bytes": 4})[2][2] == f"{int(897.5e6 // 18432):,}"
    assert run("return cacheOf(state.rows[4], 64);", {"windows": None}) == 8 * 64 * 16
    assert run("showCache(state.rows[6]); return cells('cache')[2][2];", batch="1", context="4", card="1") == ""


def test_an_encoder_keeps_no_cache():
    assert run("return cacheOf(state.rows[0], 64);", {"windows": [0, None]}) == 8 * 64 * 16
    shown = run("showCache(state.rows[0]); return cells('cache')[1];", {"windows": [0, 0]}, card="1")
    assert shown == ["original", "0 bytes", ""], "as many as one likes"


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
    script = "showFacts(state.rows[1]); return [cells('facts'), $('engines').textContent, $('title-of').textContent];"
    facts, engines, title = run(script)
    said = {row[0]: row[1] for row in facts}
    assert title == "Layout 1" and said["found by"] == "qcqa-ac, ward, exact"
    assert said["KV cache"] == "75%, 192 bytes a token" and said["KV heads of a layer"] == "2 to 4, mean 3"
    assert (said["written as"], said["error of the merge"], said["nats over the original"]) == ("ragged", "0.5", "0.5")
    assert "accuracy" not in said, "nobody measured it"
    assert engines.strip() == "The command refines it, too: these are its figures before that."
    assert run(script.replace("[1]", "[3]"))[1].strip() == "Runs in transformers, vLLM.", "refined already"


def test_two_layouts_stand_beside_one_another():
    """The one that is kept comes second, everywhere; kept alone it is shown once."""
    more = {"layouts": {**RUN["layouts"], "1": {"k": ["00112233", "00001111"], "v": None}}, "progress": []}
    script = """
      $('kind').value = 'k'; state.selected = state.rows[2]; whenSelected(showFacts); whenSelected(showCache);
      keep(state.rows[AT]);
      return [cells('facts').slice(0, 3), $('title-of').textContent, cells('cache').map((row) => row[0]),
        $('keep').hidden, $('drop').hidden];
    """
    facts, title, cache, *buttons = run(script.replace("AT", "1"), more)
    assert facts == [
        ["", "layout 2", "layout 1"],
        ["found by", "qcqa-ac", "qcqa-ac, ward, exact"],
        ["merged by"] + ["mean"] * 2,
    ]
    assert title == "Layout 2 beside layout 1" and cache == ["", "original", "layout 2", "layout 1"]
    assert buttons == [False, False]
    facts, title, cache, *buttons = run(script.replace("AT", "2"), more)
    assert facts[0] == ["found by", "qcqa-ac"] and title == "Layout 2" and cache[1:] == ["original", "layout 2"]
    assert buttons == [True, False]
    dropped = "state.selected = state.rows[2]; whenSelected(showFacts); keep(state.rows[1]); keep(null);"
    assert run(f"{dropped} return [$('title-of').textContent, $('drop').hidden];", more) == ["Layout 2", True]


def test_heads_lie_in_the_order_of_groups():
    """Query heads come two a KV head: layer 1's groups are 0 1 0 1."""
    script = "return [0, 1].map((layer) => order(state.rows[2], layer, 'k')).concat([order(state.rows[4], 0, 'v')]);"
    assert run(script) == [[0, 1, 2, 3], [0, 2, 1, 3], [0, 1, 2, 3]]
    script = "drawSimilarity(state.rows[2]); return drawn.similarity.traces.map((t) => t.z[1]);"
    # row of KV head 2: cosines 8, 10, 9, 11 of a hundred, and a hundred more where they are aligned
    assert run(script, layer="1") == [[0.08, 0.1, 0.09, 0.11], [1.08, 1.1, 1.09, 1.11]] * 2


def test_groups_are_named_by_their_heads():
    """By KV heads, of which each has two query heads here, or by query heads where a KV head's own are parted."""
    script = "return ['k', 'v'].map((kind) => namedGroups(state.rows[AT], kind));"
    assert run(script.replace("AT", "2")) == [{"kind": "KV", "layers": [[[0], [1], [2], [3]], [[0, 2], [1, 3]]]}] * 2
    k, v = run(script.replace("AT", "4"))
    assert k["layers"] == [[[0], [1], [2, 3]]] * 2 and v["layers"] == [[[0, 1, 2], [3]]] * 2
    parted = {"layouts": {"2": {"k": ["01000111", "00110011"], "v": None}}}
    assert run(script.replace("AT", "2"), parted)[0] == {
        "kind": "query", "layers": [[[0, 2, 3, 4], [1, 5, 6, 7]], [[0, 1, 4, 5], [2, 3, 6, 7]]]
    }  # fmt: skip
    named = run("return [[0], [0, 1], [0, 1, 2], [3, 5, 6, 7, 9, 12, 13]].map(headsNamed);")
    assert named == ["0", "0 1", "0–2", "3 5–7 9 12 13"]


def test_the_grid_of_groups_is_a_line_a_layer():
    """Layer, its groups, its number of heads; V's where K and V differ and V is asked for."""
    script = """
      drawHeads(state.rows[AT]);
      const [grid] = $('heads').children, [, heading] = grid.children;
      const lines = grid.children.slice(3).map((one) => one.textContent || one.children.map((box) => box.textContent));
      const boxes = grid.children[4].children;
      const drawn = boxes.map((box) => [box.className.trim(), box.style.flexGrow, box.title]);
      return [heading.textContent, lines, drawn, $('kind-label').hidden];
    """
    heading, lines, _, hidden = run(script.replace("AT", "2"), kind="v")
    assert heading == "KV heads that share one K head" and hidden, "K and V are alike"
    assert lines == ["0", ["0", "1", "2", "3"], "2", "1", ["0 2", "1 3"], "2"]
    heading, lines, boxes, hidden = run(script.replace("AT", "4"), kind="v")
    assert heading == "KV heads that share one V head" and not hidden
    assert lines[:3] == ["0", ["0–2", "3"], "1"]
    assert boxes == [["group", 3, "layer 0: KV heads 0–2"], ["group alone", 1, "layer 0: KV head 3"]]
    assert run(script.replace("AT", "4"), kind="k")[1][:3] == ["0", ["0", "1", "2 3"], "3"]


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
    drawn = run("drawProgress(state.rows[1]); return drawn.progress.traces.map((t) => [t.name, t.x, t.y]);")
    assert drawn == [["a", [1, 3, None, 1, 5, None], [1, 0.25, None, 1, 0.5, None]], ["b", [2, None], [1, None]]]


@pytest.mark.parametrize(
    ("progress", "hidden"),
    [
        ([], True), ([{"method": ["a", "b"], "scored": [1, 2], "error": [4.0, 3.0]}], True),
        ([{"method": ["a", "a"], "scored": [1, 2], "error": [4.0, 4.0]}], True),
        ([{"method": [], "scored": [], "error": []}, {"method": ["a", "a"], "scored": [1, 2], "error": [4.0, 3.9]}],
         False),
    ],
    ids=["none", "one generation", "no better", "better"],
)  # fmt: skip
def test_progress_is_shown_where_a_search_came_on(progress, hidden):
    script = "showSections(state.rows[1]); return $('progress-section').hidden;"
    assert run(script, {"progress": progress}) == hidden


def test_refinement_is_that_of_the_rows_layout_and_merge():
    script = "drawRefined(state.rows[AT]); return drawn.refined.traces.map((t) => [t.name, t.x, t.y]);"
    refined = run(script.replace("AT", "3"))
    assert refined == [["merged", [0, 1], [0.5, 0.6]], ["refined", [0, 1], [0.1, 0.2]]]
    assert run(script.replace("AT", "2")) == [["merged", [0], [0.9]], ["refined", [0], [0.8]]]
    hidden = "showSections(state.rows[AT]); return $('refined-section').hidden;"
    assert [run(hidden.replace("AT", str(i))) for i in (2, 4)] == [False, True]


def test_lines_join_the_best_of_each_size():
    """Each by its own measure: errors and nats fall, agreement rises."""
    script = """drawFront(); return drawn.front.traces.filter((t) => t.mode === "lines").map((t) => [t.x, t.y]);"""
    assert run(script, measure="over", log=True)[0] == [[0.25, 0.5, 0.75], [1.5, 0.75, 0.5]]
    rising = run(script, {"rows": [*ROWS, [6, *ROWS[2][1:6], 0.1, *ROWS[2][7:13], 0.99, 0.7]]}, measure="agreement")
    assert rising[0] == [[0.25, 0.5, 0.75], [0.5, 0.99, 0.9]]
    opacity = "drawFront(); return drawn.front.traces[1].marker.opacity;"
    assert run(opacity, measure="nll") == [1, 0.35, 1] and run(opacity, measure="error") == [0.35, 1, 1]


def test_nothing_stands_below_a_break_of_the_axis():
    """The original loses 0: on a logarithmic axis it stands at a place of its own, which says so, as far below the
    least loss 0.1 as 15% of the decades up to 6, at least 0.4 of one; without logarithms at 0."""
    script = """
      drawFront();
      const { traces, layout } = drawn.front, { tickvals, ticktext, range, type } = layout.yaxis;
      return [traces[0].y[0], tickvals, ticktext, range, type, layout.shapes || [], (layout.annotations || []).length];
    """
    zero, values, texts, (low, high), kind, (line,), marks = run(script, measure="over", log=True)
    assert zero == pytest.approx(0.1 / 10**0.4) and kind == "log" and marks == 1
    assert values == [zero, 0.1, 0.2, 0.5, 1, 2, 5] and texts == ["0", "0.1", "0.2", "0.5", "1", "2", "5"]
    assert 10**low < zero and 10**high > 6 and zero < line["y0"] == line["y1"] < 0.1
    assert run(script, measure="over", log=False) == [0, None, None, None, "linear", [], 0]
    zero, values, texts, _, _, shapes, marks = run(script, measure="nll", log=True)
    assert (zero, texts[0], shapes, marks) == (2, "2", [], 0), "all lose something: no break"
    lower = [*ROWS[:5], [*ROWS[5][:14], -0.01], ROWS[6]]
    assert run(script, {"rows": lower}, measure="over", log=True)[2][0] == "≤ 0"


def test_ticks_are_where_people_count():
    values = run("return [ticks(0.02, 0.3), ticks(1e-4, 3), ticks(2.91, 2.93)];")
    assert values == [[0.02, 0.05, 0.1, 0.2], [1e-4, 1e-3, 1e-2, 0.1, 1], [2.91, 2.93]]


def test_the_key_says_what_markers_mean():
    script = """
      drawFront();
      const said = (id) => $(id).children.map((one) => one.children.map((part) => part.textContent));
      return [said('front-key'), said('front-meanings')];"""
    lines, meanings = run(script, measure="over")
    assert lines[0] == ["★", "original"] and ["■", "neighbour, mean (baseline)"] in lines
    assert [text for _, text in lines[1:3]] == ["qcqa-ac, mean", "qcqa-ac, spectral+refine"]
    assert meanings == [
        ["■", "stock"], ["●", "ragged"], ["✕", "no engine takes it"],
        ["■", "pale: another layout of the run is as small and loses less"], ["◯", "selected"],
    ]  # fmt: skip
    front = [[*row[:9], 1, 1, *row[11:]] for row in ROWS]
    assert not [text for _, text in run(script, {"rows": front}, measure="over")[1] if "pale" in text]


def test_a_name_of_the_key_hides_its_layouts():
    script = "drawFront(); $('front-key').children[1].onclick(); return drawn.front.traces.map((t) => t.name);"
    assert "qcqa-ac, mean" not in run(script, measure="over")
    again = script.replace("return", "$('front-key').children[1].onclick(); return")
    assert "qcqa-ac, mean" in run(again, measure="over")


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


def test_the_table_begins_with_measured_rows():
    """By falling cache, and those that nobody measured behind them, until a column is chosen."""
    some = [
        [*row[:8], *(row[8:] if at in (0, 2, 6) else [None, row[9], None, *row[11:13], None, None])]
        for at, row in enumerate(ROWS)
    ]
    script = "return rowsShown().map((r) => r.at);"
    assert run(script, {"rows": some}) == [0, 2, 6, 1, 3, 4, 5]
    assert run(f"table.sorted = 'kv_ratio'; {script}", {"rows": some}) == [0, 1, 2, 3, 4, 5, 6]
    searched = [[*row[:8], None, row[9], None, *row[11:13], None, None] for row in ROWS]
    assert run(script, {"rows": searched}) == [0, 1, 2, 3, 4, 5, 6], "where nothing was measured by falling cache"


def test_the_table_has_readable_names_and_cells():
    columns, rows = [*COLUMNS, "nll_se", "kl:wiki", "hellaswag,acc"], [[*row, 0.0123, 0.5, 0.25] for row in ROWS]
    more = {"columns": columns, "rows": rows, "errors": {"over": "nll_se"}}
    script = """drawTable(); const at = (tr) => tr.children.map((td) => td.textContent || td.children[0].textContent);
      return [at($('table').tHead.children[0]), at($('table').tBodies[0].children[1])];"""
    names, cells = run(script, more, filter="", measure="over")
    said = dict(zip(names, cells))
    assert names[:5] == ["layout", "found by", "merged by", "KV cache", "nats over the original"]
    assert names[-1] == "also found by" and {"KL to the original, wiki", "hellaswag, acc"} <= set(names)
    assert "nll_se" not in " ".join(names), "it stands beside the difference that it is of"
    assert said["nats over the original"] == "0.500 ±0.012" and said["KV cache"] == "75%"
    assert (said["KV heads"], said["cache of a token"]) == ("2 to 4, mean 3", "192 bytes")
    assert (said["model's weights"], said["also found by"]) == ("2.86 MiB", "ward, exact")


def test_numbers_are_short():
    values = run("return [number(1234567), number(0.123456), number(0.123456, 2), number(null), percent(0.12345)];")
    assert values == ["1,234,567", "0.123", "0.12", "", "12.3%"]
    values = run("return [12345678, 15775123.4, 3300812.7, 0.00001234, 1e10, 0, -0.5, 'word'].map((v) => number(v));")
    assert values == ["1.23e7", "1.58e7", "3,300,000", "1.23e-5", "1e10", "0", "-0.5", "word"]
    pairs = "[[0.12345, 0.0123], [2.5, 3.14], [0.5, 0], [0.5, null], [null, 1], [0.02, 1e-9]]"
    assert run(f"return {pairs}.map((pair) => withError(...pair));") == [
        "0.123 ±0.012", "2.5 ±3.1", "0.5", "0.5", "", "0.02",
    ]  # fmt: skip
    assert run("return [0, 9999, 262144, 13476000000].map(inBytes);") == [
        "0 bytes",
        "9,999 bytes",
        "256 KiB",
        "12.6 GiB",
    ]
    assert run("return headsOf(state.rows[4]);") == [[3, 1], [2, 2]]
    assert run("return [2, 4].map((at) => headsSaid(state.rows[at]));") == ["2", "1 to 3, mean 2"]


def test_the_page_opens_on_what_is_packed_in_it():
    about = {"fitness": "weight", "text": "demo", "command": "grouper search x", "missing": "it is gone"}
    script = f"""
      $("library").textContent = "{packed("library")}";
      $("data").textContent = "{packed(json.dumps({**RUN, **about}))}";
      await open();
      const page = [document.documentElement.dataset.ready, document.head.children[0].textContent];
      const told = [$("about").children[0].textContent, ...["made", "missing"].map((id) => $(id).textContent)];
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
    said = dict(run("showFacts(state.rows[2]); return cells('facts');", more))
    assert said["weights of K and V"] == "50%, 128 bytes a token"


ONE_TEXT = {"text": "", "bands": ["0-256", "256-512"], "over": [0.5, -0.25], "error": [0.125, None]}
WIKI, CODE = {**ONE_TEXT, "text": "wiki"}, {**ONE_TEXT, "text": "code", "over": [0.75, 1.0], "error": [0.0625, 0.5]}


def by_position(*series: dict) -> dict:
    """The run where row 1 alone was measured so."""
    return {"positions": [list(series) if at == 1 else [] for at in range(len(ROWS))]}


def test_losses_by_position_are_bars_with_errors_and_a_table():
    script = (
        "drawPositions(state.rows[1]); showPositions(state.rows[1]); const { traces } = drawn.positions;"
        "return [traces.map((t) => [t.name, t.x, t.y, t.error_y.array, t.customdata]),"
        " $('positions-key').children.length, cells('positions-table'), new Set(traces.map((t) => t.marker.color)).size];"
    )
    bands, said = ["0-256", "256-512"], ["+0.50 ±0.13", "-0.25"]
    assert run(script, by_position(ONE_TEXT)) == [
        [["all text", bands, [0.5, -0.25], [0.125, None], said]], 0,
        [["position", "nats over the original"], [bands[0], said[0]], [bands[1], said[1]]], 1,
    ]  # fmt: skip
    traces, legend, cells, colours = run(script, by_position(WIKI, CODE))
    assert [trace[0] for trace in traces] == ["wiki", "code"] and (legend, colours) == (2, 2)
    assert cells == [
        ["position", "wiki", "code"], ["0-256", said[0], "+0.750 ±0.063"], ["256-512", said[1], "+1.00 ±0.50"]
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


def test_losses_by_position_of_two_layouts_stand_beside_one_another():
    """Row 2 was measured at one more position, and not on the code."""
    longer = {"text": "", "bands": ["0-256", "256-512", "512-1024"], "over": [0.125, 0.25, 0.5], "error": [None] * 3}
    more = {"positions": [[], [ONE_TEXT], [longer], *[[] for _ in ROWS[3:]]]}
    script = "state.kept = state.rows[1]; showPositions(state.rows[2]); return cells('positions-table');"
    assert run(script, more) == [
        ["position", "layout 2, mean", "layout 1, mean"], ["0-256", "+0.125", "+0.50 ±0.13"],
        ["256-512", "+0.25", "-0.25"], ["512-1024", "+0.5", ""],
    ]  # fmt: skip


SAMPLES = [
    {"layout": 0, "merge": "mean", "prompt": "Once", "text": " upon a time"},
    {"layout": 1, "merge": "mean", "prompt": "Once", "text": " upon the hill"},
    {"layout": 2, "merge": "spectral+refine", "prompt": "Once", "text": " upon a time"},
]


def test_samples_are_marked_from_where_they_differ():
    script = """state.kept = KEPT; showSamples(state.rows[AT]);
      return [$('samples-section').hidden, $('samples').children.map((one) => [one.children[0].textContent,
        ...one.children[1].children.map((part) => part.textContent)])];"""

    def shown(at: int, kept: str = "null", samples=SAMPLES):
        return run(script.replace("KEPT", kept).replace("AT", str(at)), {"samples": samples})

    original = ["original", "Once", " upon a time", ""]
    assert shown(1) == [False, [original, ["layout 1, mean", "Once", " upon ", "the hill"]]]
    refined = ["layout 2, spectral+refine", "Once", " upon a time", ""]
    assert shown(3, "state.rows[1]") == [False, [original, refined, ["layout 1, mean", "Once", " upon ", "the hill"]]]
    assert shown(2) == [True, []] and shown(0) == [True, []], "no sample of its own, or nothing beside it"
    other = [SAMPLES[0], {**SAMPLES[1], "prompt": "Never"}]
    assert shown(1, samples=other)[1][1][2:] == ["", " upon the hill"], "after another beginning all differs"


SECOND = {
    **RUN, "name": "b", "run": "runs/b", "model": "other", "layers": 3, "columns": [*COLUMNS, "kl"],
    "rows": [[*ROWS[0], 0.0], [*ROWS[1][:14], 0.3, 0.2]], "layouts": {"1": {"k": ["01234567"], "v": None}},
    "positions": [[], [ONE_TEXT]], "errors": {"kl": "kl_se"}, "comparable": None,
}  # fmt: skip
TWO_RUNS = {"name": "a", "beside": SECOND, "comparable": ["over"]}


def test_two_runs_stand_beside_one_another():
    rows = run("return state.rows.map((row) => [row.at, row.index, row.run.name, row.over, row.kl]);", TWO_RUNS)
    assert rows[6:] == [[6, 6, "a", 1.5, None], [7, 0, "b", 0, 0], [8, 1, "b", 0.3, 0.2]]
    assert run("return measures();", TWO_RUNS) == ["over", "nll", "agreement", "kl"], "errors are not comparable"
    assert run("return measures();", {**TWO_RUNS, "comparable": ["error"]}) == ["error"]
    names = run("return [...series().keys()];", TWO_RUNS)
    assert names[0] == "original, a" and {"qcqa-ac, mean, a", "original, b", "qcqa-ac, mean, b"} <= set(names)
    script = "return [commandOf(state.rows[8]), groupsOf(state.rows[8], 'k'), lossesByPosition(state.rows[8]).length];"
    assert run(script, TWO_RUNS) == ["grouper export runs/b -o other-1 --layout 1 --text 'a b.txt'", [[*range(8)]], 1]
    title = "state.kept = state.rows[1]; showFacts(state.rows[8]); return $('title-of').textContent;"
    assert run(title, TWO_RUNS) == "Layout 1 of b beside layout 1 of a"
    first = "asked.hash = '#layout=1&merge=mean&run=2'; return firstSelected().at;"
    assert run(first, TWO_RUNS) == 8 and run(first.replace("&run=2", ""), TWO_RUNS) == 1
    assert run("select(state.rows[8]); return url;", TWO_RUNS) == "#layout=1&merge=mean&run=2"
