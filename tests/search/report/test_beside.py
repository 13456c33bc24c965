"""Two layouts or two runs on one page, in Node, and samples of text."""

from page_scripts import COLUMNS, ONE_TEXT, ROWS, RUN, run


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
