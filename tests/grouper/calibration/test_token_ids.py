"""Token ids in a file, in place of text."""

import numpy as np
import pytest
import torch

from grouper import Checkpoint, GrouperError
from grouper.calibration.kept_tokens import KeptTokens
from grouper.calibration.parts import LONG, spans_of
from grouper.calibration.reading import read_examples
from grouper.calibration.source import TextSource
from grouper.calibration.text import WindowedText, text_of
from grouper.calibration.token_ids import holds_ids, ids_of, read_ids

IDS = np.random.default_rng(0).integers(3, 199, (40, 25))


@pytest.fixture
def source(tmp_path):
    np.save(tmp_path / "ids.npy", IDS)
    return TextSource(str(tmp_path / "ids.npy"))


def test_rows_follow_one_another_and_are_cut_end_to_end(models, source, tmp_path):
    assert holds_ids(source) and not holds_ids(TextSource("demo"))
    checkpoint = Checkpoint.open(models("llama"))  # which has no tokenizer
    every = torch.from_numpy(IDS.reshape(-1)[: 62 * 16].reshape(62, 16))
    assert torch.equal(text_of(checkpoint, source, 16), every)
    kept = KeptTokens(tmp_path / "kept")
    assert torch.equal(text_of(checkpoint, source, 16, 3, kept), every[[0, 30, 61]])
    assert not WindowedText.of(checkpoint, source, 16, kept).is_long(1)
    assert torch.equal(WindowedText.of(checkpoint, source, 16).resized(25).spread(), torch.from_numpy(IDS))


def test_a_long_file_is_divided_as_a_text_is(tmp_path):
    ids = np.arange(2 * LONG, dtype=np.uint32)
    np.save(tmp_path / "long.npy", ids)
    for part in ("learnt", "judged", "whole"):
        found = list(ids_of(TextSource(str(tmp_path / "long.npy"), part=part)))
        wanted = [ids[a:b] for a, b in spans_of(len(ids), part)]
        assert found == np.concatenate(wanted).tolist() and (len(found) == len(ids)) == (part == "whole")


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (np.ones((2, 2)), "holds float64 of 2 dimensions: expected token ids"),
        (np.ones((2, 2, 2), dtype=int), "holds int64 of 3 dimensions"),
        (np.array([3, -1]), "holds ids from -1 to 3"),
        (np.array([{}], dtype=object), "cannot be read as a NumPy file"),
        (b"no numbers", "cannot be read as a NumPy file"),
        (None, "is not a file"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, saved, said):
    path = tmp_path / "ids.npy"
    if isinstance(saved, bytes):
        path.write_bytes(saved)
    elif saved is not None:
        np.save(path, saved, allow_pickle=True)
    with pytest.raises(GrouperError, match=said):
        read_ids(path)


def test_ids_that_the_model_does_not_know_are_refused(models, tmp_path):
    np.save(tmp_path / "ids.npy", np.full(64, 500))
    with pytest.raises(GrouperError, match="token 500, and the model knows 199"):
        text_of(Checkpoint.open(models("llama")), TextSource(str(tmp_path / "ids.npy")), 16)


def test_a_masked_model_takes_its_mask_from_the_configuration(encoders, source, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(encoders("bert"), tmp_path / "bert")
    with pytest.raises(GrouperError, match="no token for masked places"):
        read_examples(Checkpoint.open(folder), source, 16)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mask_token_id": 3}))
    batch = read_examples(Checkpoint.open(folder), source, 16)
    assert len(batch) == 62 and (batch.inputs["input_ids"] == 3).sum() >= (batch.labels >= 0).sum() > 62


@pytest.mark.parametrize("name", ["t5", "vit"])
def test_pairs_and_pictures_are_no_ids(encoders, source, name):
    with pytest.raises(GrouperError, match=r"which a file of token ids does not hold|takes pictures"):
        read_examples(Checkpoint.open(encoders(name)), source, 16)
