"""The page's scripts, in Node: facts, cache, commands, table and numbers of rows that are known."""

import json

import pytest
from page_scripts import COLUMNS, ROWS, RUN, run

from search.report.page import packed


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


def test_bands_are_kept_out_of_the_table_and_out_of_the_measures_but_no_task_is():
    more = ["nll@0-256", "nll_se@0-256", "nll@0-256:wiki", "nll_se@0-256:wiki", "humaneval,pass@1"]
    known = {"columns": [*COLUMNS, *more], "rows": [[*row, 2.0, 0.5, 2.0, 0.5, 0.25] for row in ROWS]}
    assert run("return columnsShown().filter((c) => c.includes('@'));", known) == ["humaneval,pass@1"]
    assert run("return measures().filter((c) => c.includes('@'));", known) == ["humaneval,pass@1"]
