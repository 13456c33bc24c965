"""Weight files: what the library reads of them, what is copied, what is read back."""

import os
import threading
import time
import zlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from grouper import Checkpoint, GrouperError
from grouper.checkpoint import shards
from grouper.checkpoint.shards import same_bytes, stored, write_shards
from grouper.export.format import Job, SelfTestFailed
from grouper.export.written import compare


@pytest.fixture
def mixed(tmp_path):
    """Numbers of several sizes, an odd count of small ones among them, an empty tensor and a single number."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a.half": torch.randn(3, 7, generator=generator).bfloat16(), "b.double": torch.ones(5, dtype=torch.float64),
        "c.flags": torch.tensor([True, False, True]), "d.float": torch.randn(4, 4, generator=generator),
        "e.empty": torch.zeros(0, 3), "f.one": torch.tensor(3.5), "g.bytes": torch.arange(5, dtype=torch.uint8),
        "h.long": torch.arange(3), "häuser": torch.ones(2),
    }  # fmt: skip
    (tmp_path / "in").mkdir()
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text("{}")
    return Checkpoint.open(tmp_path / "in"), tensors


@pytest.mark.parametrize("buffer", [2**20, 8])
def test_the_library_reads_what_we_write(mixed, tmp_path, monkeypatch, buffer):
    """Loaded tensors and such that are copied from their file, side by side."""
    monkeypatch.setattr("grouper.checkpoint.shards.BUFFER", buffer)
    checkpoint, tensors = mixed
    entries = [(n, t if i % 2 else stored(checkpoint, n)) for i, (n, t) in enumerate(tensors.items())]
    (tmp_path / "out").mkdir()
    assert list(write_shards(tmp_path / "out", entries, 10**6)) == list(tensors)
    read = load_file(tmp_path / "out" / "model.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[n], t) and read[n].dtype == t.dtype for n, t in tensors.items())


def test_turned_tensors_are_written_as_they_read(tmp_path):
    turned = torch.arange(6.0).view(2, 3).T
    list(write_shards(tmp_path, [("t", turned)], 10**6))
    assert torch.equal(load_file(tmp_path / "model.safetensors")["t"], turned)


def test_a_file_that_ends_early_is_said(mixed, tmp_path):
    checkpoint, _ = mixed
    entry = stored(checkpoint, "häuser")
    os.truncate(entry.path, entry.info.start + 1)
    with pytest.raises(OSError, match="ended while it was read"):
        list(write_shards(tmp_path, [("häuser", entry)], 10**6))


def test_bytes_are_compared_to_the_last_one(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr("grouper.checkpoint.shards.BUFFER", 16)
    checkpoint, tensors = mixed
    changed = {n: t.clone() for n, t in tensors.items()}
    changed["d.float"].view(-1)[-1] += 1
    (tmp_path / "other").mkdir()
    save_file({**changed, "b.double": changed["b.double"].view(5, 1)}, tmp_path / "other" / "model.safetensors")
    (tmp_path / "other" / "config.json").write_text("{}")
    other = Checkpoint.open(tmp_path / "other")
    same = {name for name in tensors if same_bytes(stored(checkpoint, name), stored(other, name))}
    assert set(tensors) - same == {"d.float", "b.double"}


def test_what_was_copied_is_read_back(tmp_path, monkeypatch):
    """A copy that lost a byte on its way is found when it is written; a good one is noted, loaded tensors are not."""
    (tmp_path / "in").mkdir()
    save_file({"a": torch.arange(6.0), "b": torch.ones(3)}, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text('{"model_type": "llama"}')
    checkpoint = Checkpoint.open(tmp_path / "in")
    entries = [("a", shards.stored(checkpoint, "a")), ("new", torch.zeros(2))]
    compared = {}
    (tmp_path / "out").mkdir()
    assert list(shards.write_shards(tmp_path / "out", entries, 10**6, compared)) == ["a", "new"]
    assert compared == {"a": shards.stored(checkpoint, "a")}
    copy = shards._copy

    def lossy(name, entry, file, between):
        checksum = copy(name, entry, file, between)
        file.seek(-1, 2)
        file.write(b"\x7f")
        return checksum

    monkeypatch.setattr(shards, "_copy", lossy)
    with pytest.raises(GrouperError, match="a was not written as it was read"):
        list(shards.write_shards(tmp_path / "out", entries, 10**6, {}))


@pytest.mark.parametrize("while_it", ["copies", "compares"])
def test_when_it_is_closed_early_no_thread_goes_on(tmp_path, monkeypatch, while_it):
    """Whoever closes it may delete the folder at once, and has little time when a signal asks for it."""
    (tmp_path / "in").mkdir()
    save_file({"large": torch.ones(1000)}, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text("{}")
    entry = shards.stored(Checkpoint.open(tmp_path / "in"), "large")
    read, pieces, begun = shards.read_into, [], threading.Event()
    copied = 4000 // 16 if while_it == "compares" else 0

    def slow(file, room):
        pieces.append(len(room))
        if len(pieces) > copied:
            begun.set()
            time.sleep(0.01)
        read(file, room)

    monkeypatch.setattr(shards, "BUFFER", 16)
    monkeypatch.setattr(shards, "read_into", slow)
    (tmp_path / "out").mkdir()
    written = shards.write_shards(tmp_path / "out", [("large", entry), ("last", torch.ones(4))], 4000, {})
    assert [next(written), next(written)] == ["large", "last"]
    assert begun.wait(10)
    written.close()
    assert not any(t.name.startswith("background") for t in threading.enumerate())
    assert copied < len(pieces) < copied + 100, "it was given up between two pieces"


def test_only_what_was_compared_is_not_read_again(tmp_path):
    for name, value in (("one", 1.0), ("other", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"a": torch.full((4,), value)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"model_type": "llama"}')
    one, other = (Checkpoint.open(tmp_path / name) for name in ("one", "other"))

    def passes(written: Checkpoint, name: str, compared: dict) -> bool:
        """Whether the first checkpoint's tensor `a` is what was to be written as `name`."""
        try:
            compare(Job(one, None, None, None, compared=compared), written, [(name, shards.stored(one, "a"))])
        except SelfTestFailed:
            return False
        return True

    assert passes(one, "a", {}) and not passes(other, "a", {})
    assert passes(other, "a", {"a": shards.stored(one, "a")}), "this very tensor was found the same when written"
    assert not passes(other, "a", {"a": shards.stored(other, "a")}), "another one was copied"
    assert not passes(other, "b", {"b": shards.stored(one, "a")})


def test_checksums_are_of_each_tensors_bytes(tmp_path):
    """Copied in pieces or written from memory: zlib's CRC-32 of the bytes as safetensors' own reader gives them."""
    (tmp_path / "in").mkdir()
    copied = torch.randn(3, 700_000, generator=torch.Generator().manual_seed(0))  # more than one buffer
    save_file({"copied": copied}, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text('{"model_type": "llama"}')
    entry, made, sums = shards.stored(Checkpoint.open(tmp_path / "in"), "copied"), torch.arange(5.0).bfloat16(), {}
    list(shards.write_shards(tmp_path, [("copied", entry), ("made", made)], 10**9, {}, sums))
    wanted = {
        "copied": zlib.crc32(copied.numpy().tobytes()),
        "made": zlib.crc32(made.view(torch.uint8).numpy().tobytes()),
    }
    assert sums == wanted and shards.checksum_of(entry) == wanted["copied"]


def test_only_infinity_and_nan_are_not_finite():
    """The largest numbers of each type are finite; what lies beyond is not, with either sign."""
    for code, dtype in (
        ("F32", torch.float32),
        ("F16", torch.float16),
        ("BF16", torch.bfloat16),
        ("F64", torch.float64),
    ):
        largest = torch.finfo(dtype).max
        for value, finite in ((largest, True), (-largest, True), (0.0, True), (torch.nan, False), (-torch.inf, False)):
            part = memoryview(torch.tensor([1.0, value], dtype=dtype).view(torch.uint8).numpy())
            assert shards.all_finite(part, code) == finite, (code, value)
    assert shards.all_finite(memoryview(b"\xff" * 8), "I64") and shards.all_finite(memoryview(b""), "F32")
