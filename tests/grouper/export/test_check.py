"""`grouper check`: an exported folder is looked at again, and no code but our own runs."""

import json
import shutil

import pytest
import torch
from export_jobs import as_if_refined, job_of
from family_samples import EQUAL, RAGGED, UNEQUAL, layout_for
from safetensors.torch import load_file, save_file

from grouper import Architecture, Checkpoint, ExportOptions, GrouperError, export
from grouper.export.check import check_folder
from grouper.export.format import SelfTestFailed

KINDS = {"stock": EQUAL, "padded": UNEQUAL, "ragged": RAGGED}


@pytest.fixture(scope="module")
def exported(samples, tmp_path_factory):
    """exported("llama", "ragged"): the original and an export of it as refinement leaves one."""
    made = {}

    def get(name: str, kind: str):
        if (name, kind) not in made:
            job = job_of(samples(name), layout_for(samples(name), KINDS[kind]), ExportOptions(max_padding=9.0))
            out = tmp_path_factory.mktemp(f"{name}-{kind}") / "out"
            export(job.checkpoint, job.layout, out, merged=as_if_refined(job, "block").merged, options=job.options)
            made[name, kind] = samples(name), out
        return made[name, kind]

    return get


@pytest.mark.parametrize("memory", [4_000_000_000, 0])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama", "stock"), ("llama", "padded"), ("qwen2", "ragged"), ("gpt2", "ragged"), ("gpt_neox", "stock")],
)
def test_what_was_exported_passes(exported, name, kind, memory):
    original, out = exported(name, kind)
    found = check_folder(out, str(original), ExportOptions(self_test_memory=memory))
    assert found.passed and ("every layer" in found.summary) == (memory == 0)
    assert f"transformers finds all {len(Checkpoint.open(out).tensors)} tensors" in found.summary


def test_an_encoder_passes(encoders, tmp_path):
    a = Architecture.of(Checkpoint.open(encoders("bert")).config)
    export(encoders("bert"), a.ungrouped, tmp_path / "out")
    assert check_folder(tmp_path / "out", str(encoders("bert"))).passed


@pytest.mark.parametrize("what", ["q_proj", "k_proj", "v_proj", "o_proj", "post_attention_layernorm", "up_proj"])
def test_a_tensor_that_changed_is_named(exported, tmp_path, what):
    original, out = exported("llama", "stock")
    folder = shutil.copytree(out, tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n in tensors if what in n and ".1." in n)
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        SelfTestFailed, match=f"{name} of .* changed since it was exported: download or export it again"
    ):
        check_folder(folder, str(original))


def test_a_lost_tensor_is_named(exported, tmp_path):
    original, out = exported("llama", "stock")
    folder = shutil.copytree(out, tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GrouperError, match=r"model\.norm\.weight"):
        check_folder(folder, str(original))


def test_a_class_that_computes_otherwise_fails(exported, tmp_path):
    """As after an upgrade that changed it: here config.json has another activation."""
    original, out = exported("llama", "stock")
    folder = shutil.copytree(out, tmp_path / "x")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    with pytest.raises(SelfTestFailed, match="the MLP and norms of layer 0 differs"):
        check_folder(folder, str(original))


@pytest.mark.parametrize(
    "change",
    [
        {"auto_map": {"AutoConfig": "modeling_ragged.d--evil.C"}}, {"auto_map": ["modeling_ragged.RaggedConfig"]},
        {"auto_map": "modeling_ragged.RaggedConfig"}, {"auto_map": {}}, {"architectures": []}, {"architectures": None},
        {"model_type": "llama"},
    ],
    ids=str,
)  # fmt: skip
def test_our_file_that_is_named_otherwise_is_not_run(exported, tmp_path, monkeypatch, change):
    """transformers takes "FOLDER--FILE.CLASS" from another folder, or from the Hub."""
    original, out = exported("qwen2", "ragged")
    folder, ran = shutil.copytree(out, tmp_path / "x"), tmp_path / "ran"
    (tmp_path / "modeling_ragged.d").mkdir()
    (tmp_path / "modeling_ragged.d" / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for field, value in change.items():
        config[field] = {**config[field], **value} if isinstance(value, dict) and value else value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(GrouperError, match="so nothing is run"):
        check_folder(folder, str(original))
    assert not ran.exists()


@pytest.mark.parametrize("way", ["another file", "no text", "another name", "no file"])
def test_code_that_is_not_ours_is_not_run(exported, tmp_path, way):
    original, out = exported("qwen2", "stock" if way == "no file" else "ragged")
    folder, ran = shutil.copytree(out, tmp_path / "x"), tmp_path / "ran"
    evil = f"open({str(ran)!r}, 'w')\n"
    config = json.loads((folder / "config.json").read_text())
    if way == "another file":
        (folder / "modeling_ragged.py").write_text(evil + (folder / "modeling_ragged.py").read_text())
    elif way == "no text":
        (folder / "modeling_ragged.py").write_bytes(b"\xff")
    else:
        (folder / "evil.py").write_text(evil)
        config["auto_map"] = {**config.get("auto_map", {}), "AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(GrouperError, match="so nothing is run"):
        check_folder(folder, str(original))
    assert not ran.exists()


def test_an_older_export_without_checksums_is_computed_all_the_same(exported, tmp_path):
    original, out = exported("llama", "stock")
    folder = shutil.copytree(out, tmp_path / "x")
    facts = json.loads((folder / "grouper.json").read_text())
    assert len(facts.pop("crc32")) == len(load_file(folder / "model.safetensors"))
    (folder / "grouper.json").write_text(json.dumps(facts))
    assert check_folder(folder, str(original)).passed
    assert torch.isfinite(Checkpoint.open(folder).tensor("model.norm.weight")).all()
