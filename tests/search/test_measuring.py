"""Measurements that can be compared, and those that cannot."""

import json
from dataclasses import replace

import pytest
from made_up_runs import SEARCHED, made_up_run, scored

from grouper import GrouperError
from search.measuring import Measuring


def test_measuring_anew_forgets_all_of_it(tmp_path):
    measured = {"nll": [2.0, 3.0, 4.0, 5.0], "kl": [0.0, 1.0, 2.0, 3.0]}
    folder = made_up_run(tmp_path / "run", scored(*SEARCHED), **measured)
    folder.note_refined(1, "mean+refine", [(1.0, 0.5)])
    before = Measuring("a.txt", "a", (2, 64), "float32", ("mean.x=1",))
    (folder.path / "evaluation.json").write_text(json.dumps({**before.to_data(), "refinement": {"scope": "block"}}))
    for other in (
        replace(before, digest="b"), replace(before, windows=(2, 32)), replace(before, dtype="bfloat16"),
        replace(before, set=()),
    ):  # fmt: skip
        with pytest.raises(GrouperError, match="other text, windows or parameters"):
            other.check(folder, folder.front(), None, overwrite=False)
    kept = replace(before, text="b.txt").check(folder, folder.front(), None, overwrite=False)
    assert kept.table["nll"].tolist() == measured["nll"], "the same text under another name"
    front = replace(before, digest="b").check(folder, folder.front(), None, overwrite=True)
    for table in (front.table, folder.front().table):
        assert table[["nll", "kl"]].isna().all(axis=None) and table["on_nll_front"].isna().all()
    assert folder.read_refined().empty
    assert json.loads((folder.path / "evaluation.json").read_text()) == json.loads(
        json.dumps(replace(before, digest="b").to_data())
    )
