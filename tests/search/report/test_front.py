"""The page's picture of the front, in Node: its points, axis and key."""

import json

import pytest
from page_scripts import COLUMNS, ROWS, run


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
