"""What is said while people wait."""

import pytest

from search import console


@pytest.mark.parametrize(("took", "says"), [(0.5, False), (40.0, True)])
def test_long_work_says_once_how_long_it_takes(monkeypatch, capsys, took, says):
    """One of four parts took 0.5 or 40 seconds: 1.5 or 120 are left."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.bar("searching") as update:
        update(0, 4, "beginning")
        for done in (1, 2, 3):
            now[0] += took
            update(done, 4, f"layer {done}")
    said = capsys.readouterr().err
    assert said.count("left after layer 1") == says and ("2 min" in said) == says and "layer 2" not in said
