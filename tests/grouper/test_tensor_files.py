"""Tensors that are kept: to the bit, the same bytes each time, and no other file in their place."""

import shutil
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from grouper import GrouperError, tensor_files
from grouper.tensor_files import FIELD, facts_of, load_tensors, save_tensors

CALM = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Facts:
    tokens: int
    error: float = float("nan")
    tried: dict[str, float] = field(default_factory=dict)


TENSORS = {
    "a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor([1, -2], dtype=torch.bfloat16), "c": torch.tensor(True),
    "none": torch.empty(0, 3),
}  # fmt: skip
FACTS = Facts(3, 0.1 + 0.2, {"0.1": float("inf")})


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "key" / "layer-000.safetensors"
    path.parent.mkdir()
    save_tensors(path, TENSORS, FACTS)
    return path


def test_tensors_and_facts_come_back_to_the_bit(kept):
    tensors, facts = load_tensors(kept, Facts, "delete it")
    assert facts == FACTS == facts_of(kept, Facts, "delete it") and tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype


def test_another_process_writes_the_same_bytes(kept):
    before = kept.read_bytes()
    run = (
        "import sys, torch; from pathlib import Path; from dataclasses import dataclass, field\n"
        "from grouper.tensor_files import save_tensors\n"
        "@dataclass\nclass Facts:\n  tokens: int\n  error: float\n  tried: dict = field(default_factory=dict)\n"
        "t = {'a': torch.arange(6.0).view(2, 3).T, 'b': torch.tensor([1, -2], dtype=torch.bfloat16),"
        " 'c': torch.tensor(True), 'none': torch.empty(0, 3)}\n"
        "save_tensors(Path(sys.argv[1]), t, Facts(3, 0.1 + 0.2, {'0.1': float('inf')}))\n"
    )
    for _ in range(2):
        kept.unlink()
        subprocess.run([sys.executable, "-c", run, str(kept)], check=True)
        assert kept.read_bytes() == before


def test_a_file_in_the_place_of_another_is_refused(kept):
    """Another layer's, or that of another model, text or plan, after which the folder is named."""
    other = kept.with_name("layer-001.safetensors")
    shutil.copyfile(kept, other)
    with pytest.raises(
        GrouperError, match=r"layer-001\S* is damaged \(it was written as 'key/layer-000\S*\): delete it"
    ):
        load_tensors(other, Facts, "delete it")
    (kept.parent.parent / "other").mkdir()
    shutil.copyfile(kept, kept.parent.parent / "other" / kept.name)
    with pytest.raises(GrouperError, match="it was written as 'key/"):
        facts_of(kept.parent.parent / "other" / kept.name, Facts, "delete it")
    moved = shutil.move(kept.parent, kept.parent.parent / "elsewhere.refine" / "key")
    assert load_tensors(moved / kept.name, Facts, "delete it")[1] == FACTS, "with its folder it may be moved"


def test_a_changed_tensor_or_fact_is_refused(kept):
    tensors = {name: tensor.clone() for name, tensor in load_file(kept).items()}  # older releases map the file
    with safe_open(kept, framework="pt") as file:
        metadata = file.metadata()
    changed = [
        ({**tensors, "a": tensors["a"] + 1}, metadata), ({n: t for n, t in tensors.items() if n != "b"}, metadata),
        ({**tensors, "a": tensors["a"].view(2, 3)}, metadata), ({**tensors, "x": tensors["a"]}, metadata),
        (tensors, {FIELD: metadata[FIELD].replace('"tokens": 3', '"tokens": 4')}),
    ]  # fmt: skip
    for others, facts in changed:
        save_file({n: t.clone() for n, t in others.items()}, kept, metadata=facts)
        with pytest.raises(GrouperError, match="it changed since it was written"):
            load_tensors(kept, Facts, "delete it")
    save_file(tensors, kept, metadata=metadata)
    assert load_tensors(kept, Facts, "delete it")[1] == FACTS


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {FIELD: ""}, {FIELD: "[]"}, {FIELD: "{}"}, {FIELD: "[" * 1000}, {"tokens": "x"}, {"tokens": "9" * 5000},
     {"reached": "{"}, {"reached": '{"tokens": 1.5}'}, {"format": "pt"},
     {FIELD: '{"file": "key/layer-000.safetensors", "digest": 0, "facts": {"tokens": null}}'}],
)  # fmt: skip
def test_facts_of_another_kind_are_one_line(kept, metadata):
    save_file({"a": torch.ones(1)}, kept, metadata=metadata)
    for read in (load_tensors, facts_of):
        with pytest.raises(GrouperError) as refused:
            read(kept, Facts, "delete it")
        line = str(refused.value)
        assert line.startswith(f"{kept} is damaged (") and line.endswith(": delete it") and "\n" not in line


def test_files_of_older_versions_open(kept):
    """Facts side by side, as text, or an object alone."""
    save_file({"a": torch.ones(1)}, kept, metadata={"tokens": "3", "error": "nan", "more": ""})
    assert load_tensors(kept, Facts, "delete it")[1].tokens == 3
    save_file({"a": torch.ones(1)}, kept, metadata={"reached": '{"tokens": 4, "tried": {"0.1": Infinity}}'})
    assert load_tensors(kept, Facts, "delete it")[1].tried == {"0.1": float("inf")}


def test_a_file_that_says_nothing_is_none_of_ours(kept):
    """Even where all facts have defaults."""

    @dataclass
    class Free:
        step: int = 0

    for metadata in (None, {"format": "pt"}, {"groupes": '{"facts": {"step": 1}}'}):
        save_file({"a": torch.ones(1)}, kept, metadata=metadata)
        with pytest.raises(GrouperError, match="its header holds none of our facts"):
            facts_of(kept, Free, "delete it")


@CALM
@given(st.data())
def test_any_damage_is_read_or_refused(kept, data):
    """Bytes changed, cut off or added; what is read is what was written."""
    whole = kept.read_bytes()
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, min(len(whole), begin + 9)))
    path = kept.parent.parent / "damaged" / "key" / kept.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole[:begin] + data.draw(st.binary(max_size=9)) + whole[end:])
    try:
        tensors, facts = load_tensors(path, Facts, "delete it")
    except GrouperError:
        return
    assert facts == FACTS and all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_tensors_that_are_saved_can_still_be_resized(tmp_path):
    """As sharded training does with its parameters; what numpy has seen it could not."""
    tensor = torch.ones(3)
    save_tensors(tmp_path / "a.safetensors", {"a": tensor}, Facts(**vars(FACTS)))
    tensor.untyped_storage().resize_(0)
    assert tensor.untyped_storage().size() == 0


def test_a_disk_whose_files_cannot_be_mapped_is_read(kept, monkeypatch):
    def refused(*_given, **_options):
        raise OSError(19, "No such device")

    monkeypatch.setattr(tensor_files, "load_file", refused)
    monkeypatch.setattr(tensor_files, "safe_open", refused)
    tensors, facts = load_tensors(kept, Facts, "delete it")
    assert facts == FACTS and all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(GrouperError, match="is damaged"):
        load_tensors(kept, Facts, "delete it")
    kept.write_bytes(b"\xff" * 100)
    with pytest.raises(GrouperError, match="is damaged"):
        load_tensors(kept, Facts, "delete it")
    kept.unlink()
    with pytest.raises(GrouperError, match=r"cannot be read \(No such file"):
        load_tensors(kept, Facts, "delete it")
