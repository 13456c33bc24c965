"""The page layer by layer, in Node: heads, errors, searches, refinement, losses by position."""

import pytest
from page_scripts import ONE_TEXT, ROWS, run


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


def test_bounds_are_drawn_for_the_layouts_that_have_them():
    script = "drawBounds(state.rows[2]); return drawn.bounds.traces.map(({ name, x, y }) => [name, x, y]);"
    assert run(script, bounded="K") == [["merged", [0, 1], [0.5, 0.4]], ["any", [0, 1], [0.25, 0.3]]]
    assert run(script, bounded="V") == [["merged", [0, 1], [0.75, 0.8]]]
    script = "return [2, 5].map((at) => { showSections(state.rows[at]); return $('bounds-section').hidden; });"
    assert run(script) == [False, True]


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
        ([{"method": ["a", "a"], "scored": [1, 2], "error": [4.0, 3.97]}], True),
        ([{"method": [], "scored": [], "error": []}, {"method": ["a", "a"], "scored": [1, 2], "error": [4.0, 3.9]}],
         False),
    ],
    ids=["none", "one generation", "no better", "hardly better", "better"],
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


WIKI, CODE = {**ONE_TEXT, "text": "wiki"}, {**ONE_TEXT, "text": "code", "over": [0.75, 1.0], "error": [0.0625, 0.5]}


def by_position(*series: dict) -> dict:
    """The run where row 1 alone was measured so."""
    return {"positions": [list(series) if at == 1 else [] for at in range(len(ROWS))]}


def test_losses_by_position_are_bars_with_errors_and_a_table():
    script = (
        "drawPositions(state.rows[1]); showPositions(state.rows[1]); const { traces } = drawn.positions;"
        "return [traces.map((t) => [t.name, t.x, t.y, t.error_y.array, t.customdata]),"
        " $('positions-key').children.length, cells('positions-table'),"
        " new Set(traces.map((t) => t.marker.color)).size];"
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
