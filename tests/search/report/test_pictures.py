import pytest

from grouper import GrouperError
from search.report import PICTURES, write_pictures
from search.report.facts import facts_of
from search.report.pictures import parsed_formats


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
    assert names == set(PICTURES) - {"similarity", "refinement"}


def test_a_format_that_there_is_not():
    assert parsed_formats("png, svg,png") == ("png", "svg")
    with pytest.raises(GrouperError, match="pnk"):
        parsed_formats("svg,pnk")
