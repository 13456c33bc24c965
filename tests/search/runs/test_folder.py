"""What a run keeps for people to look at."""

from dataclasses import replace

import pandas as pd
import pytest
from made_up_runs import OTHER, SEARCHED, TWO, made_up_run, scored

from grouper import GrouperError, Grouping, LayerLayout
from search import RunFolder, SearchOptions, search
from search.methods.candidate import Candidate
from search.runs.pareto import EXACT


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
    read = folder.read_layer(1, 8, 8)
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


def test_a_layers_candidates_come_back_as_they_were(tmp_path):
    """Three query heads a KV head; groups of K and V apart and shared queries are kept whole, errors to the bit."""
    k, v = Grouping.from_labels(TWO, 3), Grouping.from_labels(OTHER, 3)
    moved = Grouping(((0, 1, 2, 3), tuple(range(4, 12))), ((0, 1), (2, 3)))
    found = {
        "qcqa-ac": [Candidate(LayerLayout.shared(v), 0.1 + 0.2, 1 / 3), Candidate(LayerLayout.shared(k), 1e-30)],
        "separate": [Candidate(LayerLayout(k, v), 2 / 3)],
        "dgqa": [Candidate(LayerLayout.shared(moved), 0.5)],
        "gqkva": [Candidate(LayerLayout(k, k, Grouping.from_labels([q // 2 for q in range(12)])), 0.5)],
    }  # fmt: skip
    (tmp_path / "layers").mkdir()
    folder = RunFolder(tmp_path)
    folder.write_layer(3, found)
    assert folder.read_layer(3, 12, 4) == found and folder.read_layer(2, 12, 4) is None
    rows = pd.read_csv(folder.layer_path(3))
    assert rows["groups"].tolist() == ["0 2|1 3", *["0 1|2 3"] * 4] and rows["layout"].isna().tolist()[:2] == [True] * 2


def test_a_new_run_takes_over_nothing_of_the_one_that_it_replaces(tmp_path):
    found = [{"qcqa-ac": [Candidate(LayerLayout.from_labels(TWO), 0.5, 0.2)]}]
    folder = made_up_run(tmp_path / "run", scored(*SEARCHED), found=found)
    folder.write_progress(0, [("qcqa-ac", 1, 2.0)])
    folder.note_refined(0, "mean+refine", [(1.0, 0.5)])
    for name in ("pareto.svg", "evaluation.json", "sensitivity.csv", "proxies.csv", "mine.txt"):
        (folder.path / name).write_text("{}")
    settings = replace(folder.settings, fingerprint="another")
    with pytest.raises(GrouperError, match="holds a run with another fingerprint"):
        RunFolder.start(folder.path, settings, overwrite=False)
    assert RunFolder.start(folder.path, folder.settings, overwrite=False).read_layer(0, 4, 4) == found[0], "it goes on"
    assert RunFolder.start(folder.path, settings, overwrite=True).settings == settings
    left = {p.relative_to(folder.path).as_posix() for p in folder.path.rglob("*") if p.is_file()}
    assert left == {"run.json", "digests/run.json", "mine.txt"}


def test_refinements_of_other_merges_stay(tmp_path):
    folder = RunFolder(tmp_path)
    folder.note_refined(3, "mean+refine", [(0.5, 0.1), (0.6, 0.2)])
    folder.note_refined(3, "spectral+refine", [(0.4, 0.3), (0.4, 0.3)])
    table = folder.read_refined()
    assert table["merge"].tolist() == ["mean+refine"] * 2 + ["spectral+refine"] * 2
    assert table["layer"].tolist() == [0, 1, 0, 1] and table["before"].tolist() == [0.5, 0.6, 0.4, 0.4]


@pytest.mark.parametrize(("seed", "resume", "stays"), [(0, True, True), (1, True, False), (0, False, False)])
def test_a_run_that_is_overwritten_goes_on_where_it_is_the_same_and_that_is_asked_for(tmp_path, seed, resume, stays):
    run = made_up_run(tmp_path / "run", scored(*SEARCHED))
    settings = replace(run.settings, options=replace(run.settings.options, seed=seed))
    RunFolder.start(run.path, settings, overwrite=True, resume=resume)
    assert (run.path / "pareto.csv").is_file() == stays and run.settings.options.seed == seed
