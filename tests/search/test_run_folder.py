"""What a run keeps for people to look at."""

import pandas as pd
import pytest

from search import RunFolder, SearchOptions, search
from search.pareto import EXACT


@pytest.fixture(scope="module")
def folder(reader, tmp_path_factory):
    run = tmp_path_factory.mktemp("looked-at") / "run"
    text = {"text": "demo", "tokens": 2048, "window": 128}
    search(reader, run, SearchOptions(("qcqa-ac", "kdgqa"), "activation", population=12, generations=6, **text))
    return RunFolder(run)


def test_layers_say_what_of_an_error_is_ks(folder):
    table = pd.read_csv(folder.layer_path(1), **EXACT)
    searched = table[table["method"] == "qcqa-ac"]
    assert (searched["k_error"] > 0).all() and (searched["k_error"] < searched["error"]).all()
    assert table.loc[table["method"] == "kdgqa", "k_error"].isna().any(), "where query heads change theirs"
    read = folder.read_layer(1, 1)
    assert [c.k_error for c in read["qcqa-ac"]] == searched["k_error"].tolist()


def test_generations_are_noted(folder):
    table = folder.read_progress(0)
    assert table["method"].unique().tolist() == ["qcqa-ac", "qcqa-ec"]
    table = table[table["method"] == "qcqa-ac"]
    assert table["scored"].is_monotonic_increasing and table["scored"].iloc[0] >= 8
    assert table["error"].iloc[-1] <= table["error"].iloc[0]


def test_the_last_refinement_of_a_layout_counts(folder):
    folder.note_refined(3, "spectral+refine", [(0.5, 0.1), (0.6, 0.2)])
    folder.note_refined(4, "spectral+refine", [(0.7, 0.3)])
    folder.note_refined(3, "spectral+refine", [(0.5, 0.05)])
    table = folder.read_refined()
    assert table["layout"].tolist() == [4, 3] and table["after"].tolist() == [0.3, 0.05]
    (folder.path / "refined.csv").write_bytes(b"\xff\x00,")
    assert folder.read_refined().empty, "nothing depends on it"
    folder.layer_path(0).with_suffix(".progress.csv").write_text("method,scored,error\nqcqa-ac,12,xyz\n")
    assert folder.read_progress(0).empty
