import numpy as np
import pytest
from made_up_runs import made_up_run, scored
from matplotlib import pyplot as plt

from grouper import Checkpoint, GrouperError, Grouping, HeadLayout, LayerLayout
from search.methods.candidate import Candidate
from search.report import PICTURES, write_pictures
from search.report.facts import facts_of
from search.report.pictures import parsed_formats
from search.runs.pareto import Scored


@pytest.fixture(autouse=True)
def figures():
    yield
    plt.close("all")


def test_each_picture_in_each_format_and_the_same_twice(measured_run, tmp_path):
    facts = facts_of(measured_run)
    last = int(facts.front.table["layout"].iloc[-1])
    written = write_pictures(facts, tmp_path / "a", ("png", "svg", "pdf"), last)
    assert {p.name for p in written} == {f"{n}.{kind}" for n in PICTURES for kind in ("png", "svg", "pdf")}
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert all(p.read_bytes().startswith(starts[p.suffix[1:]]) for p in written)
    again = write_pictures(facts, tmp_path / "b", ("svg", "pdf"), last)
    assert all(p.read_bytes() == (tmp_path / "a" / p.name).read_bytes() for p in again)


def test_dark_pictures_are_dark(measured_run, tmp_path):
    from matplotlib.image import imread

    facts = facts_of(measured_run, similar=False)
    first = int(facts.front.table["layout"].iloc[0])
    for dark, name in ((False, "front.png"), (True, "front-dark.png")):
        write_pictures(facts, tmp_path, ("png",), first, dark)
        assert (imread(tmp_path / name)[:, :, :3].mean() < 0.3) == dark


def test_what_a_run_does_not_have_is_not_drawn(measured_run, tmp_path):
    facts = facts_of(measured_run, similar=False)
    first = int(facts.front.table["layout"].iloc[0])
    names = {p.stem for p in write_pictures(facts, tmp_path, ("svg",), first)}
    assert names == set(PICTURES) - {"similarity", "refinement", "bounds"}


def test_a_format_that_there_is_not():
    assert parsed_formats("png, svg,png") == ("png", "svg")
    with pytest.raises(GrouperError, match="pnk"):
        parsed_formats("svg,pnk")


@pytest.fixture
def known(reader, tmp_path):
    """Of a model with 3 layers of 8 heads; layout 1 groups K and V apart."""
    checkpoint = Checkpoint.open(reader)
    k, v = [0, 1, 0, 1, 2, 2, 3, 3], [0, 0, 1, 1, 1, 2, 2, 0]
    apart = LayerLayout(Grouping.from_labels(k), Grouping.from_labels(v))
    layouts = [
        *scored(("original", 0.0, range(8)), layers=3, query_heads=8, head_dim=16),
        Scored(HeadLayout((apart,) * 3, 8, 8, 16), "separate", 0.5, "mean"),
    ]
    half = LayerLayout.from_labels(k)
    found = [{"qcqa-ac": [Candidate(half, 2.0**i, 0.25), Candidate(LayerLayout.from_labels([0] * 8), 4.0, 0.5)]}
             for i in range(3)]  # fmt: skip
    run = made_up_run(tmp_path / "run", layouts, None, str(reader), checkpoint.fingerprint, found)
    run.note_refined(1, "mean+refine", [(0.9, 0.8)] * 3)
    run.note_refined(1, "spectral+refine", [(0.5, 0.1), (0.6, 0.2), (0.7, 0.3)])
    run.note_refined(0, "spectral+refine", [(9.0, 9.0)] * 3)
    run.write_progress(0, [("qcqa-ac", 10, 8.0), ("qcqa-ac", 20, 2.0)])
    run.write_progress(1, [("qcqa-ac", 10, 4.0), ("qcqa-ac", 30, 3.0)])
    return facts_of(run)


def test_heads_are_drawn_by_the_group_of_k_that_they_read(known):
    (image,) = PICTURES["heads"](known, 1).axes[0].images
    assert np.asarray(image.get_array()).tolist() == [[0, 1, 0, 1, 2, 2, 3, 3]] * 3


def test_similarities_are_the_middle_layers_in_the_order_of_groups(known):
    order = {"k": [0, 2, 1, 3, 4, 5, 6, 7], "v": [0, 1, 7, 2, 3, 4, 5, 6]}
    axes = PICTURES["similarity"](known, 1).axes
    for axis, (kind, when) in zip(axes, [("k", "before"), ("k", "aligned"), ("v", "before"), ("v", "aligned")]):
        whole = getattr(known.similarity[1][kind], when)
        wanted = [[float(whole[a, b]) for b in order[kind]] for a in order[kind]]
        assert np.allclose(np.asarray(axis.images[0].get_array()), wanted)


def test_errors_are_drawn_together_and_apart(known):
    figure = PICTURES["landscape"](known, 1)
    grids = {axis.get_title(): axis.collections[0].get_array().reshape(2, 3).tolist() for axis in figure.axes[:3]}
    wanted = {
        "K and V": [[4, 4, 4], [1, 2, 4]], "K": [[0.5] * 3, [0.25] * 3],
        "V": [[3.5, 3.5, 3.5], [0.75, 1.75, 3.75]],
    }  # fmt: skip
    assert grids == wanted


def test_progress_is_relative_to_each_layers_first_generation(known):
    lines = PICTURES["progress"](known, 1).axes[0].lines
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in lines[:2]] == [
        ([10, 20], [1.0, 0.25]), ([10, 30], [1.0, 0.75]),
    ]  # fmt: skip


def test_refinement_is_the_layouts_and_the_last_merges(known):
    bars = PICTURES["refinement"](known, 1).axes[0].containers
    assert {c.get_label(): [bar.get_height() for bar in c] for c in bars} == {
        "merged": [0.5, 0.6, 0.7], "refined": [0.1, 0.2, 0.3],
    }  # fmt: skip
