"""Calibration: from files and datasets, kept, and through offload."""

import json

import pytest
import torch

from grouper import Checkpoint, GrouperError
from grouper.calibration.calibration import Calibration
from grouper.calibration.moments import InputMoments, load_moments, save_moments
from grouper.calibration.source import TextSource
from grouper.model.in_memory import InMemoryModel
from grouper.regroup import Regrouper


def test_a_dataset_calibrates_like_a_file(reader, text, tmp_path):
    pytest.importorskip("datasets")  # an optional extra
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps({"text": text.read_text()}) + "\n")
    a, b = (
        Regrouper(Checkpoint.open(reader), Calibration(source, 1024, window=128)).windows(1024)
        for source in (TextSource(str(text)), TextSource(dataset=f"{tmp_path / 'data'}:train"))
    )
    assert torch.equal(a, b)
    with pytest.raises(GrouperError, match="NAME"):
        TextSource(dataset=f"{tmp_path / 'data'}:nothing").documents(None)
    with pytest.raises(GrouperError, match="nowhere"):
        TextSource(dataset=f"{tmp_path}/nowhere").documents(None)


def test_kept_calibration_is_used_again_and_only_for_the_same_text(reader, text, tmp_path, monkeypatch):
    def calibrated(tokens: int) -> list[InputMoments]:
        return Regrouper(
            Checkpoint.open(reader), Calibration(TextSource(str(text)), tokens, window=128, keep=tmp_path / "kept")
        ).moments

    first, other = calibrated(2048), calibrated(1024)
    assert len(list((tmp_path / "kept").iterdir())) == 2 and not torch.equal(
        first[0].second_moment, other[0].second_moment
    )
    monkeypatch.setattr("grouper.regroup.collect_moments", None)  # no second pass
    again = calibrated(2048)
    for a, b in zip(first, again):
        assert torch.equal(a.second_moment, b.second_moment) and torch.equal(a.keys, b.keys) and a.tokens == b.tokens
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(GrouperError, match="no kept calibration"):
        load_moments(tmp_path / "bad.safetensors")
    save_moments(tmp_path / "good.safetensors", first)
    assert torch.equal(load_moments(tmp_path / "good.safetensors")[2].second_moment, first[2].second_moment)


def test_a_model_that_does_not_fit_is_calibrated_through_offload(reader, text, monkeypatch):
    calibration = Calibration(TextSource(str(text)), 1024, window=128)
    whole = Regrouper(Checkpoint.open(reader), calibration).moments
    for module in ("memory", "in_memory"):  # less than the weights: accelerate puts some on disk
        monkeypatch.setattr(f"grouper.model.{module}.free_memory", lambda: 1.5e6)
    placed = []
    init = InMemoryModel.__init__
    monkeypatch.setattr(
        InMemoryModel, "__init__", lambda self, *a, **k: init(self, *a, **k) or placed.append(self.model.hf_device_map)
    )
    offloaded = Regrouper(Checkpoint.open(reader), calibration).moments
    assert "disk" in placed[0].values()
    for a, b in zip(whole, offloaded):
        assert torch.allclose(a.second_moment, b.second_moment, rtol=1e-4, atol=1e-5) and torch.allclose(
            a.keys, b.keys, rtol=1e-3
        )
