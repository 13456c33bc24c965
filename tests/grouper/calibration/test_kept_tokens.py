"""Tokens beside a run."""

import os
import shutil

import pytest
import torch

from grouper import Checkpoint, tensor_files
from grouper.calibration import parts
from grouper.calibration import text as reading
from grouper.calibration.kept_tokens import KeptTokens, _Nothing, key_of
from grouper.calibration.source import TextSource
from grouper.calibration.text import text_of


def test_a_text_is_not_tokenised_twice(reader, text, tmp_path, monkeypatch):
    checkpoint, source = Checkpoint.open(reader), TextSource(str(text))
    kept = KeptTokens(tmp_path / "tokens")
    first = text_of(checkpoint, source, 64, 8, kept)
    assert not (tmp_path / "tokens").exists(), "nothing is written before the run has begun"
    kept.begin()
    assert torch.equal(first, text_of(checkpoint, source, 64, 8))
    (file,) = (tmp_path / "tokens").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(reading, "load_tokenizer", lambda _: pytest.fail("tokenised again"))
        assert torch.equal(first, text_of(checkpoint, source, 64, 8, KeptTokens(tmp_path / "tokens")))
    assert len(text_of(checkpoint, source, 64, 4, KeptTokens(tmp_path / "tokens"))) == 4, "another limit"
    whole = file.read_bytes()
    changed, other = bytes([*whole[:-1], whole[-1] ^ 1]), tmp_path / "tokens" / "other.safetensors"
    tensor_files.save_tensors(other, {"tokens": first.int() + 1}, _Nothing())
    for damaged in (b"", b"nonsense", whole[:200], changed, other.read_bytes()):
        file.write_bytes(damaged)
        again = KeptTokens(tmp_path / "tokens")
        assert again.find(file.stem) is None and torch.equal(first, text_of(checkpoint, source, 64, 8, again))
        again.begin()
        assert file.read_bytes() == whole, "it is replaced"


def test_parts_of_a_long_text_are_kept_apart(reader, text, tmp_path, monkeypatch):
    """A short one, of which nothing is set aside, has one name."""
    checkpoint, kept = Checkpoint.open(reader), KeptTokens(tmp_path / "tokens")
    kept.begin()
    learnt, whole = TextSource(str(text)), TextSource(str(text), part="whole")
    assert torch.equal(*(text_of(checkpoint, source, 64, 8, kept) for source in (learnt, whole)))
    assert len(list((tmp_path / "tokens").iterdir())) == 1
    monkeypatch.setattr(parts, "LONG", text.stat().st_size)
    monkeypatch.setattr(parts, "GAP", 8)
    assert not torch.equal(*(text_of(checkpoint, source, 64, 8, kept) for source in (learnt, whole)))
    assert len(list((tmp_path / "tokens").iterdir())) == 2


def test_a_name_changes_with_the_text_and_the_tokenizer(reader, text, tmp_path):
    shutil.copytree(reader, tmp_path / "model")
    file = tmp_path / "text.txt"
    shutil.copy2(text, file)
    known = file.stat()
    names = [key_of(file, tmp_path / "model", 64)]
    names.append(key_of(file, tmp_path / "model", 128))
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns + 1))
    names.append(key_of(file, tmp_path / "model", 64))
    file.write_bytes(b"X" + file.read_bytes()[1:])  # of the same size and time
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns))
    names.append(key_of(file, tmp_path / "model", 64))
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    names.append(key_of(file, tmp_path / "model", 64))
    assert len(set(names)) == 5
    (tmp_path / "model" / "model.safetensors").unlink()
    with open(tmp_path / "model" / "notes.txt", "wb") as huge:
        huge.truncate(2**40)
    (tmp_path / "model" / "link.txt").symlink_to(text)
    assert key_of(file, tmp_path / "model", 64) == names[-1], "weights read no text"
