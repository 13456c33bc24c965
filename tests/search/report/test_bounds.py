"""bounds.csv of a run: which layouts are in it, and where its numbers come from."""

import shutil

import numpy as np
import pandas as pd
import pytest
from commands import grouper

from fitness.spectral import Spectral
from grouper import Architecture, Checkpoint, GrouperError
from search import RunFolder, SearchOptions, search
from search.report.bounds import NAME, read_bounds, shown_layouts, write_bounds


@pytest.fixture(scope="module")
def run(reader, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bounds") / "run"
    search(reader, folder, SearchOptions(("qcqa-ec", "separate", "gqkva"), "weight", population=12, generations=3))
    return RunFolder(folder)


def test_the_errors_are_those_of_the_spectral_fitness(run, reader):
    run.note_refined(shown_layouts(run)[0], "spectral+refine", [(0.5, 0.25), (0.75, 0.5), (0.9, 0.1)])
    write_bounds(run)
    table, checkpoint = read_bounds(run), Checkpoint.open(reader)
    a = Architecture.of(checkpoint.config)
    assert sorted(set(table["layout"])) == shown_layouts(run)
    for layer, rows in table.groupby("layer"):
        fitness = Spectral().tables(a.read(checkpoint, layer), a.input_moments(checkpoint, layer))
        labels = np.stack([run.layout(number).layers[layer].k.labels for number in rows["layout"]])
        assert np.allclose(fitness.errors(labels), rows["k"] + rows["v"], rtol=1e-9, atol=1e-12)
    refined = table[table["layout"] == shown_layouts(run)[0]]
    assert refined["merged"].tolist() == [0.5, 0.75, 0.9] and refined["refined"].tolist() == [0.25, 0.5, 0.1]
    assert table[table["layout"] != shown_layouts(run)[0]]["refined"].isna().all()


def test_layouts_that_no_spectral_merge_can_follow_are_left_out(run):
    shown = shown_layouts(run)
    table = run.front().table.set_index("layout")
    assert set(table.loc[shown, "deploy"]) == {"stock"} and len(set(table.loc[shown, "kv_ratio"])) == len(shown)
    assert not set(table.loc[shown, "method"]) & {"separate", "gqkva", "neighbour", "original"}


def test_the_command_writes_the_table_and_a_second_one_reads_it(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / NAME).unlink(missing_ok=True)
    assert grouper("report", tmp_path / "run", "--bounds", "--no-similar").returncode == 0
    first = pd.read_csv(tmp_path / "run" / NAME)
    done = grouper("report", tmp_path / "run", "--format", "svg", "--no-similar", "--layout", first["layout"].iloc[0])
    assert done.returncode == 0 and (tmp_path / "run" / "pictures" / "bounds.svg").is_file()


def test_another_text_than_the_runs_is_refused(reader, text, tmp_path):
    shutil.copyfile(text, tmp_path / "text.txt")
    options = SearchOptions(fitness="weight", population=8, generations=2, text=str(tmp_path / "text.txt"), tokens=512)
    search(reader, tmp_path / "run", options)
    (tmp_path / "text.txt").write_text(text.read_text()[20_000:] * 2)
    with pytest.raises(GrouperError, match=r"text.txt changed since the run was searched"):
        write_bounds(RunFolder(tmp_path / "run"))
