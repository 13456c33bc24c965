"""An export of a run whose self-test fails loses no work."""

import pytest

from grouper import Calibration, GrouperError, RefineOptions, TextSource
from grouper.export.format import SelfTestFailed
from grouper.refinement.layer import LayerWorker
from search import SearchOptions, Selection, export_from_run, search


def test_a_self_test_that_fails_throws_no_refinement_away(reader, tmp_path, monkeypatch):
    search(reader, tmp_path / "run", SearchOptions(generations=2, population=8, fitness="weight"))
    calibration = Calibration(TextSource("demo"), tokens=512, window=64)

    def export():
        options = RefineOptions(tokens=512, steps=2)
        return export_from_run(tmp_path / "run", tmp_path / "out", Selection(kv_ratio="1/2"), calibration, options)

    def fails(*_):
        raise SelfTestFailed("the exported model failed its self-test: something")

    with monkeypatch.context() as broken:
        broken.setattr("grouper.export.hf.write.run_self_test", fails)
        with pytest.raises(GrouperError) as failure:
            export()
    stays = f"; nothing was written; the refined layers stay in {tmp_path / 'out'}.refine"
    assert stays in str(failure.value) and str(failure.value).endswith("the same command goes on from there")
    kept = [file.name for file in (tmp_path / "out.refine").rglob("*.safetensors")]
    assert len(kept) == 3 and not (tmp_path / "out").exists()

    def again(*_, **__):
        raise AssertionError("a layer was refined again")

    monkeypatch.setattr(LayerWorker, "fit", again)
    monkeypatch.setattr("grouper.regroup.Regrouper.estimate", lambda *_: 0.0)  # it fits one layer for a moment
    assert export().self_test.passed and not (tmp_path / "out.refine").exists()
