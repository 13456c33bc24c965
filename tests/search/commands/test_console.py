"""Tables on the terminal."""

import pytest
from made_up_runs import SEARCHED, made_up_run, scored

from grouper.export import Exported
from grouper.export.format import SelfTest
from search.commands import console


@pytest.mark.parametrize("width", [80, 140])
def test_the_closing_table_shows_perplexity_and_standard_errors(tmp_path, capsys, monkeypatch, width):
    monkeypatch.setattr(console, "ERR", console.Terminal(stderr=True, width=width))
    measured = {"nll": [2.0, 3.0, 4.0, 5.0], "perplexity": [7.389, 20.09, 54.6, 148.41]}
    run = made_up_run(tmp_path / "run", scored(*SEARCHED), **measured, nll_se=[0.0, 0.1234, 0.02, 0.03])
    console.closing_table(run.front(), "run")
    lines = capsys.readouterr().err.splitlines()
    assert "perplexity" in lines[0] and "over" in lines[0] and ("nats" in lines[0]) == (width > 100)
    rows = [line for line in lines if "20.09" in line]
    assert len(rows) == 1 and rows[0].rstrip().endswith("+1.0000 ±0.1234")
    assert "±" not in next(line for line in lines if "7.39" in line), "the original"
    assert all(len(line) <= width for line in lines[:5])


@pytest.mark.parametrize("measured", [True, False])
def test_how_to_measure_is_said_where_nothing_was_measured(capsys, measured):
    same = {"format": "hf", "export_class": "stock", "kv_bytes_per_token": (8, 4), "weight_bytes": (10, 9)}
    exported = Exported("half", engines=["transformers"], self_test=SelfTest(0.0, 16, 16), loader="AutoModel", **same)
    console.exported_summary(exported, measured)
    assert ("how close that is to the original: grouper evaluate half" in capsys.readouterr().out) != measured


@pytest.mark.parametrize("padding", [0, 3])
def test_the_cost_of_zero_heads_is_said(capsys, padding):
    same = {"format": "hf", "export_class": "padded", "kv_bytes_per_token": (8, 4), "weight_bytes": (10, 12)}
    same |= {"engines": ["transformers"], "self_test": SelfTest(0.0, 16, 16), "loader": "AutoModel"}
    console.exported_summary(Exported("half", padding_bytes=padding, **same))
    line = "weights 10 -> 12 bytes" + (", 3 (25.0%) of them zero heads" if padding else "")
    assert line in capsys.readouterr().out.splitlines()
