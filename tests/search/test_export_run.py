"""An export of a run whose self-test fails loses no work."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from grouper import Calibration, GrouperError, HeadLayout, RefineOptions, TextSource
from grouper.export.format import SelfTestFailed
from grouper.merging import MERGES
from grouper.refinement.layer import LayerWorker
from search import SearchOptions, Selection, export_from_run, search
from search.export_run import as_begun, kept_refinement


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


class OnText:
    """As far as a folder for its refinement is asked of a regrouper: four short windows, or two and a long one."""

    def __init__(self, encodes: bool = False, fingerprint: str = "a", first: int = 0):
        self.architecture, self.checkpoint = SimpleNamespace(encodes=encodes), SimpleNamespace(fingerprint=fingerprint)
        self.first = first

    def texts(self, refine: RefineOptions) -> list[torch.Tensor]:
        ids = torch.arange(self.first, self.first + 16)
        return [ids[:8].view(2, 4), ids[8:].view(1, 8)] if refine.long_share else [ids.view(4, 4)]

    def windows(self, tokens: int) -> torch.Tensor:
        return torch.arange(self.first, self.first + tokens)[None]


REFINE = RefineOptions(tokens=16, seed=1).for_device("cpu")


def chosen(labels=(0, 0, 1, 1), merge="spectral", **parameters) -> SimpleNamespace:
    return SimpleNamespace(
        layout=HeadLayout.from_labels([labels], 4, 8), merge=replace(MERGES.named(merge), **parameters)
    )


@pytest.mark.parametrize("encodes", [False, True])
def test_refined_layers_are_kept_by_all_that_they_depend_on(encodes):
    """By what windows the text comes in, not by the share that long ones were asked to have."""
    out, ours = Path("models/out"), OnText(encodes)
    folder = kept_refinement(ours, chosen(), REFINE, out)
    assert folder.parent == Path("models/out.refine")
    assert kept_refinement(OnText(encodes), chosen(), replace(REFINE, long_share=0.25), Path("models/out/")) == folder
    others = [
        kept_refinement(OnText(encodes, fingerprint="b"), chosen(), REFINE, out),
        kept_refinement(OnText(encodes, first=1), chosen(), REFINE, out),
        kept_refinement(ours, chosen(labels=(0, 1, 0, 1)), REFINE, out),
        kept_refinement(ours, chosen(merge="mean"), REFINE, out),
        kept_refinement(ours, chosen(merge="weighted"), REFINE, out),
        kept_refinement(ours, chosen(merge="weighted", steps=7), REFINE, out),
        kept_refinement(ours, chosen(), replace(REFINE, seed=2), out),
        kept_refinement(ours, chosen(), replace(REFINE, scope="block"), out),
    ]
    without = kept_refinement(ours, chosen(), replace(REFINE, long_share=0.0), out)
    assert (without == folder) == encodes, "examples have no long windows"
    assert len({folder, *others}) == 9 and (encodes or without not in others)


@pytest.mark.parametrize("begun", [(), ("long",), ("short",), ("long", "short")], ids=lambda begun: " and ".join(begun))
def test_a_refinement_that_an_older_version_began_goes_on_without_long_windows(tmp_path, begun):
    """Unless one with long windows was begun, too."""
    shares = {"long": 0.5, "short": 0.0}
    for name in begun:
        options = replace(REFINE, long_share=shares[name])
        kept_refinement(OnText(), chosen(), options, tmp_path / "out").mkdir(parents=True)
    lines = []
    found = as_begun(OnText(), chosen(), REFINE, tmp_path / "out", lines.append)
    assert found == replace(REFINE, long_share=0.0 if begun == ("short",) else 0.5)
    assert [line.split(":")[0] for line in lines] == ["an older version began this refinement"] * (begun == ("short",))


def test_an_encoders_refinement_has_no_other_form(tmp_path):
    assert as_begun(OnText(encodes=True), chosen(), REFINE, tmp_path / "out", lambda _line: None) is REFINE
