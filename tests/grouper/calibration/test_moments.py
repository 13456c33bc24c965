"""Calibration: from files and datasets, kept, and through offload."""

import json
import os

import pytest
import torch
from random_layers import random_moments

from grouper import Checkpoint, GrouperError
from grouper.calibration.calibration import Calibration
from grouper.calibration.input_moments import AssumedInputs, MeasuredInputs
from grouper.calibration.moments import KeptMoments
from grouper.calibration.source import TextSource
from grouper.compress import Regrouper


def documents(source: TextSource) -> list[str]:
    opened = source.documents(lambda: None)
    return [text for text, _ in opened.pieces(0, opened.size)]


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="an optional extra")


def test_a_dataset_calibrates_like_a_file(datasets, reader, text, tmp_path):
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


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        (TextSource("wikitext"), ("Salesforce/wikitext", "wikitext-2-raw-v1", "train")),
        (TextSource("wikitext", purpose="evaluation"), ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")),
        (TextSource("ultrachat", purpose="evaluation"), ("HuggingFaceH4/ultrachat_200k", None, "test_sft[:5000]")),
        (TextSource(dataset="a/b"), ("a/b", None, "train")),
        (TextSource(dataset="a/b:valid"), ("a/b", None, "valid")),
        (TextSource(dataset="a/b:en:valid"), ("a/b", "en", "valid")),
        (TextSource(dataset="a/b:train[:1%]"), ("a/b", None, "train[:1%]")),
        (TextSource(dataset="a/b:en:train[10:20]"), ("a/b", "en", "train[10:20]")),
    ],
)
def test_texts_have_short_names_and_datasets_parts(datasets, monkeypatch, source, asked):
    calls = []
    rows = datasets.Dataset.from_list([{"text": "words"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, split: calls.append((path, name, split)) or rows)
    assert documents(source) == ["words"] and calls == [asked]


def test_a_dataset_of_too_many_parts_is_refused(datasets):
    with pytest.raises(GrouperError, match="4 parts"):
        TextSource(dataset="a:b:c:d").documents(None)


def test_the_lines_of_wikitext_are_one_text(datasets, monkeypatch):
    rows = datasets.Dataset.from_list([{"text": " = Title = \n"}, {"text": ""}, {"text": "Words.\n"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, split: rows)
    assert documents(TextSource("wikitext")) == [" = Title = \nWords.\n"]


def test_a_file_of_a_short_name_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wikitext").write_text("mine")
    assert documents(TextSource("wikitext")) == ["mine"]


def test_kept_calibration_is_used_again_and_only_for_the_same_text(reader, text, tmp_path, monkeypatch):
    def calibrated(tokens: int) -> KeptMoments:
        calibration = Calibration(TextSource(str(text)), tokens, window=128, keep=tmp_path / "kept")
        return Regrouper(Checkpoint.open(reader), calibration).kept_moments()

    first, other = calibrated(2048), calibrated(1024)
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert not torch.equal(first[0].second_moment, other[0].second_moment)
    monkeypatch.setattr("grouper.compress.collect_moments", None)  # no second pass
    again = calibrated(2048)
    assert len(again) == 3 and again.folder == first.folder
    (again.path(1)).write_bytes(b"nothing")
    with pytest.raises(GrouperError, match=r"is damaged .*: delete its folder, and it is made again"):
        again[1]
    with pytest.raises(IndexError):
        again[3]


def test_what_is_no_folder_keeps_no_calibration(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(GrouperError, match=r"`keep_calibration=.*file` is not a folder"):
        Calibration(TextSource("demo"), keep=tmp_path / "file")


def test_moments_are_kept_to_the_bit_and_not_used_before_all_are_there(tmp_path):
    moments = [random_moments(0), random_moments(1)]
    moments = [MeasuredInputs(m.second_moment.float().double(), 7, torch.rand(2, 4, 4)) for m in moments]

    def broken():
        yield moments[0]
        raise RuntimeError("killed")

    kept = KeptMoments(tmp_path / "kept", 2)
    kept.folder.mkdir()
    old, new = (kept.folder / f".layer-000.safetensors.{pid}.partial" for pid in (1, 2))
    old.write_bytes(b"killed"), new.write_bytes(b"of somebody else, now")
    os.utime(old, (0, 0))
    with pytest.raises(RuntimeError):
        kept.keep(broken())
    assert not kept.complete
    told: list[tuple[int, int]] = []
    assert kept.keep(moments, lambda layer: told.append((layer, kept[layer].tokens))).complete
    assert told == [(0, 7), (1, 7)]  # each of them can be read when it is told
    for a, b in zip(kept, moments, strict=True):
        assert torch.equal(a.second_moment, b.second_moment) and torch.equal(a.keys, b.keys) and a.tokens == b.tokens
    assert sorted(p.name for p in kept.folder.iterdir()) == [new.name, kept.path(0).name, kept.path(1).name]


@pytest.mark.parametrize("bias", [None, torch.tensor([2.0, -1.0, 0.5])])
def test_products_with_what_a_norm_says_are_those_with_the_matrix_written_out(bias):
    inputs = AssumedInputs.from_norm(torch.tensor([1.0, 3.0, 0.2]), bias, 3)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 2, 4, generator=generator, dtype=torch.float64)
    turned = torch.complex(rows, rows.flip(0))
    written_out = MeasuredInputs(inputs.second_moment, 1)
    for a, b in ((inputs, written_out), (inputs.centred(), written_out.centred())):
        assert torch.allclose(a.times(rows), b.times(rows)) and torch.allclose(a.times(turned), b.times(turned))
        assert torch.allclose(a.second_moment, b.second_moment)
