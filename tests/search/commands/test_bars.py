"""What is said while people wait."""

import re
import sys
import time

import pytest

from search.commands import bars


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("took", "says"), [(0.5, False), (40.0, True)])
def test_long_work_says_once_how_long_it_takes(clock, capsys, took, says):
    """One of four parts took 0.5 or 40 seconds: 1.5 or 120 are left."""
    with bars.bar("searching", says_how_long=True) as update:
        update(0, 4, "beginning")
        for done in (1, 2, 3):
            clock[0] += took
            update(done, 4, f"layer {done}")
    said = capsys.readouterr().err
    assert said.count("left after layer 1") == says and ("2 min" in said) == says and "layer 2" not in said


def test_what_was_done_before_took_no_time_now(clock, capsys):
    """20 of 32 layers are there already; the next one takes 600 s: 11 more are left."""
    with bars.bar("searching", says_how_long=True) as update:
        update(20, 32, "layer 19 is done")
        clock[0] += 600
        update(21, 32, "layer 20 is done")
    assert re.search(r"about 1.8 h left after layer 20 is done, \d+\.\d GB in use", capsys.readouterr().err)


def test_each_kind_of_work_is_timed_by_itself(clock, capsys):
    """Calibration takes 1 s a layer, the search 1,000: 3 more of these are left."""
    with bars.bar("searching", says_how_long=True) as update:
        for done in range(1, 5):
            clock[0] += 1
            update(done, 4, f"calibrating, layer {done}")
        update(0, 4, "layer 0, qcqa-ac")
        clock[0] += 1000
        update(1, 4, "layer 0 is done")
    said = capsys.readouterr().err
    assert "50 min left after layer 0 is done" in said and "calibrating" not in said


def test_work_that_was_estimated_says_nothing_more(clock, capsys):
    with bars.bar("training") as update:
        update(0, 4, "")
        clock[0] += 500
        update(1, 4, "loss 4")
    assert "left" not in capsys.readouterr().err


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bars, "SILENT", 0.02)


def line_of(capsys, wanted: str) -> str:
    """The first line on stderr that matches, waited for."""
    said, until = "", time.perf_counter() + 10
    while not (found := re.search(f"^.*{wanted}.*$", said, re.MULTILINE)):
        assert time.perf_counter() < until, said
        time.sleep(0.02)
        said += capsys.readouterr().err
    return found[0]


def test_without_a_terminal_lines_say_how_far_work_is(clock, quick, capsys):
    """Also while a part takes long: 2 of 8 parts took 100 s each, and 50 s of the third are over."""
    with bars.bar("searching") as update:
        assert line_of(capsys, "so far") == "searching: 0 s so far"
        update(0, 8, "layer 0")
        clock[0] += 200
        update(2, 8, "layer 2, generation 3")
        clock[0] += 50
        said = line_of(capsys, "generation 3, 4 min")
    assert said == "searching: 2 of 8 done, layer 2, generation 3, 4 min so far, about 9 min left"
    capsys.readouterr()
    time.sleep(0.1)
    assert not capsys.readouterr().err, "work that is done says no more"


def test_lines_are_flushed_and_a_terminal_gets_none(quick, capsys, monkeypatch):
    flushed = []
    monkeypatch.setattr(sys.stderr, "flush", lambda: flushed.append(1), raising=False)
    with bars.bar("searching"):
        line_of(capsys, "so far")
        assert flushed
        monkeypatch.setattr(type(bars.ERR), "is_terminal", True)
        with bars.lines("measuring"):
            time.sleep(0.1)
    assert "measuring" not in capsys.readouterr().err


def test_silence_lasts_half_a_minute_at_most():
    assert 0 < bars.SILENT <= 30


def test_a_part_that_is_done_is_said_at_once_but_not_each_of_many(clock, capsys, monkeypatch):
    monkeypatch.setattr(bars, "SILENT", 60)
    with bars.bar("searching") as update:
        update(0, 30, "layer 0")
        clock[0] += bars.CALM
        update(0, 30, "layer 0, generation 7")
        update(1, 30, "layer 0 is done")
        assert line_of(capsys, "so far") == "searching: 1 of 30 done, layer 0 is done, 10 s so far, about 5 min left"
        clock[0] += bars.CALM / 2
        update(2, 30, "layer 1 is done")
        clock[0] += bars.CALM / 2
        update(3, 30, "layer 2 is done")
        assert "layer 2 is done" in line_of(capsys, "so far")
        clock[0] += bars.CALM
        update(30, 30, "searching, layer 29")
        assert line_of(capsys, "so far").endswith(" done, layer 29, 30 s so far"), "other work may follow"
        clock[0] += bars.CALM
        update(31, bars.FEW + 1, "step 31")
        time.sleep(0.1)
    assert not capsys.readouterr().err, "steps are not said one by one"
