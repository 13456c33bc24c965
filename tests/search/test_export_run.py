"""An export of a run whose self-test fails loses no work."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from grouper import Calibration, ExportOptions, GrouperError, HeadLayout, RefineOptions, TextSource
from grouper.export.format import SelfTestFailed
from grouper.merging import MERGES
from grouper.refinement.layer import LayerWorker
from search import SearchOptions, Selection, export_from_run, search
from search.export_run import as_begun, kept_refinement


def test_a_self_test_that_fails_throws_no_refinement_away(reader, text, tmp_path, monkeypatch):
    search(reader, tmp_path / "run", SearchOptions(generations=2, population=8, fitness="weight"))
    calibration = Calibration(TextSource(str(text)), tokens=512, window=64)

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
    monkeypatch.setattr("grouper.compress.Regrouper.estimate", lambda *_: 0.0)  # it fits one layer for a moment
    assert export().self_test.passed and not (tmp_path / "out.refine").exists()


class OnText:
    """As far as a folder for its refinement is asked of a regrouper: four short windows, or two and a long one; other
    tokens where nothing is set aside."""

    def __init__(self, encodes: bool = False, fingerprint: str = "a", first: int = 0):
        self.encodes, self.checkpoint, self.first = encodes, SimpleNamespace(fingerprint=fingerprint), first

    def texts(self, refine: RefineOptions) -> list[torch.Tensor]:
        ids, long = torch.arange(self.first, self.first + 16), refine.long_share and not self.encodes
        return [ids[:8].view(2, 4), ids[8:].view(1, 8)] if long else [ids.view(4, 4)]

    def on_whole_text(self) -> "OnText":
        return OnText(self.encodes, self.checkpoint.fingerprint, self.first + 100)


REFINE = RefineOptions(tokens=16, seed=1).plan("cpu")


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


NEW, SHORT, WHOLE, OLDEST = (0, 0.5), (0, 0.0), (100, 0.5), (100, 0.0)  # the first token, the share of long windows


@pytest.mark.parametrize(
    ("begun", "goes_on"),
    [([], NEW), ([NEW], NEW), ([SHORT], SHORT), ([WHOLE], WHOLE), ([OLDEST], OLDEST), ([NEW, SHORT, WHOLE], NEW)],
)
def test_a_refinement_that_an_older_version_began_goes_on_as_that_began_it(tmp_path, begun, goes_on):
    """Unless this version has begun one, too."""
    for first, share in begun:
        options = replace(REFINE, long_share=share)
        kept_refinement(OnText(first=first), chosen(), options, tmp_path / "out").mkdir(parents=True)
    lines = []
    regrouper, options = as_begun(OnText(), chosen(), REFINE, tmp_path / "out", lines.append)
    assert (regrouper.first, options) == (goes_on[0], replace(REFINE, long_share=goes_on[1]))
    assert [line.split(":")[0] for line in lines] == ["an older version began this refinement"] * (goes_on != NEW)


@pytest.mark.parametrize(("first", "goes_on"), [(0, 0), (100, 100), (7, 0)])
def test_a_refinement_of_an_encoder_has_no_long_windows(tmp_path, first, goes_on):
    kept_refinement(OnText(True, first=first), chosen(), REFINE, tmp_path / "out").mkdir(parents=True)
    regrouper, options = as_begun(OnText(True), chosen(), REFINE, tmp_path / "out", lambda _line: None)
    assert (regrouper.first, options) == (goes_on, REFINE)


def test_what_engines_can_split_is_exported(models, tmp_path):
    """Within a budget a count that four GPUs can share; of a layout named by its number the heads are padded."""
    search(models("llama"), tmp_path / "run", SearchOptions(generations=2, population=8, fitness="weight"))
    options = ExportOptions(tp=4, max_padding=9.0)
    chosen = export_from_run(tmp_path / "run", tmp_path / "chosen", Selection(kv_ratio="0.7"), options=options)
    assert (chosen.export_class, chosen.kv_bytes_per_token[1] * 2) == ("stock", chosen.kv_bytes_per_token[0])
    options = replace(options, tp=3)
    kept = export_from_run(
        tmp_path / "run", tmp_path / "kept", Selection(layout=0), options=options, refine=RefineOptions()
    )
    assert (kept.export_class, kept.tp, kept.kv_bytes_per_token) == ("padded", 3, (1536, 1728))
    assert kept.not_refined is None, "nothing is merged, so no text is missing"
