"""What `evaluate` prints about positions: the difference to the original, layout by layout."""

import pandas as pd
from rich.console import Console

from search.commands import measured_tables
from search.commands.measured_tables import evaluated_table, positions_table
from search.evaluation.models import EvaluatedModel, own
from search.runs.pareto import ParetoFront

BANDS = {"nll@0-256": (3.0, 3.25), "nll@256-512": (2.0, 2.5)}


def front() -> ParetoFront:
    rows = [{"layout": 0, "method": "original"}, {"layout": 7, "method": "qcqa-ec"}, {"layout": 8, "method": "mean"}]
    table = pd.DataFrame(rows).assign(merge="spectral", kv_ratio=[1.0, 0.5, 0.5], nll=[2.5, 2.9, float("nan")])
    for column, (before, after) in BANDS.items():
        table[column] = [before, after, float("nan")]
        table[column.replace("nll", "nll_se")] = [0.0, 0.0123, float("nan")]
    return ParetoFront(table)


def printed(monkeypatch, show, shown, stream: str) -> str:
    console = Console(width=120, record=True, quiet=False)
    monkeypatch.setattr(measured_tables, stream, console)
    show(shown)
    return console.export_text()


def test_positions_are_told_of_what_was_measured(monkeypatch):
    lines = printed(monkeypatch, positions_table, front(), "ERR").splitlines()
    assert lines[0].strip() == "nats over the original, by position in windows"
    assert lines[1].split() == ["layout", "method", "merge", "0-256", "256-512"]
    assert lines[2].split() == ["7", "qcqa-ec", "spectral", "+0.2500", "±0.0123", "+0.5000", "±0.0123"]
    assert len(lines) == 3


def test_short_windows_have_no_such_table(monkeypatch):
    short = ParetoFront(front().table.drop(columns=[c for c in front().table if "@" in c]))
    assert printed(monkeypatch, positions_table, short, "ERR") == ""


def test_a_model_alone_is_told_with_its_difference_to_the_original(monkeypatch):
    original = {"nll": 2.5, "nll_se": 0.0, "nll@0-256": 3.0, "nll_se@0-256": 0.0, "kl": 0.0}
    assert own(original) == {"nll": 2.5, "nll@0-256": 3.0}
    found = EvaluatedModel("mine", {"nll": 2.75, "nll_se": 0.01, "nll@0-256": 3.5, "nll_se@0-256": 0.02}, own(original))
    lines = printed(monkeypatch, evaluated_table, found, "OUT").splitlines()
    assert lines[0].split() == ["measured", "mine", "standard", "error", "original", "over"]
    assert [line.split() for line in lines[1:]] == [
        ["nll", "2.7500", "0.0100", "2.5000", "+0.2500"],
        ["nll@0-256", "3.5000", "0.0200", "3.0000", "+0.5000"],
    ]
