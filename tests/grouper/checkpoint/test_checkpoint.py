import json
import os
import struct
import time

import pytest
import torch
from tiny_models import edit_weights, make_model

from grouper import Architecture, Checkpoint, GrouperError
from grouper.checkpoint.header import read_header
from grouper.checkpoint.shards import write_shards
from grouper.families.family import Family
from grouper.families.storage import Fused


def test_tensors_and_headers_of_one_file_and_of_shards(models, tmp_path):
    whole, sharded = models("llama"), make_model(tmp_path / "m", shards="100KB")
    assert len(Checkpoint.open(sharded).weight_files) > 2
    a, b = Checkpoint.open(whole), Checkpoint.open(sharded)
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensor(name), b.tensor(name)) for name in a.tensors)


def test_written_shards_are_read_back_and_named_as_the_hub_names_them(tmp_path):
    tensors = {f"t{i}": torch.randn(100, generator=torch.Generator().manual_seed(i)) for i in range(5)}
    assert list(write_shards(tmp_path, tensors.items(), shard_bytes=900)) == list(tensors)
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.weight_files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert all(torch.equal(checkpoint.tensor(n), t) for n, t in tensors.items())


def test_the_fingerprint_changes_with_the_weights(models, tmp_path):
    source = models("llama")
    changed = edit_weights(source, tmp_path / "m", lambda t: t["model.layers.0.self_attn.k_proj.weight"].mul_(2))
    assert (
        Checkpoint.open(source).fingerprint
        == Checkpoint.open(source).fingerprint
        != Checkpoint.open(changed).fingerprint
    )


def broken(source, folder, how):
    """A copy of a model, damaged."""
    import shutil

    shutil.copytree(source, folder)
    how(folder)
    return folder


def refuse(text):
    return pytest.raises(GrouperError, match=text)


def test_what_is_no_readable_checkpoint_is_refused_by_name(models, tmp_path):
    source = models("llama")

    def index(weight_map):
        def write(folder):
            os.rename(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

        return write

    cases = {
        "no safetensors": lambda f: os.remove(f / "model.safetensors"),
        "has no config.json": lambda f: os.remove(f / "config.json"),
        "not JSON": lambda f: (f / "config.json").write_text("{"),
        "which is missing": index({"a": "model-00002-of-00002.safetensors"}),
        "outside the model's folder": index({"a": "../secret.safetensors"}),
        "has no weight_map": index(None),
        "truncated or corrupt": lambda f: os.truncate(f / "model.safetensors", 5000),
        "its header cannot be read": lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"{{{{"),
        "a header of": lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}"),
    }
    for number, (message, damage) in enumerate(cases.items()):
        folder = broken(source, tmp_path / str(number), damage)
        with refuse(message):
            Architecture.of(Checkpoint.open(folder).config).read(Checkpoint.open(folder), 0)


def test_quantised_and_unsupported_models_are_refused(models, tmp_path):
    def config(**changes):
        return lambda f: (f / "config.json").write_text(
            json.dumps({**json.loads((f / "config.json").read_text()), **changes})
        )

    with refuse("is quantised"):
        Checkpoint.open(broken(models("llama"), tmp_path / "q", config(quantization_config={"bits": 4})))
    with refuse("'mamba' cannot be regrouped: it mixes attention with"):
        Architecture.of(Checkpoint.open(broken(models("llama"), tmp_path / "m", config(model_type="mamba"))).config)


def test_non_finite_weights_are_refused_with_the_tensors_name(models, tmp_path):
    name = "model.layers.1.self_attn.v_proj.weight"
    folder = edit_weights(models("llama"), tmp_path / "m", lambda t: t[name].view(-1)[5].fill_(float("nan")))
    checkpoint = Checkpoint.open(folder)
    Architecture.of(checkpoint.config).read(checkpoint, 0)
    with refuse(f"{name} of .* holds NaN or infinity"):
        Architecture.of(checkpoint.config).read(checkpoint, 1)


def test_no_such_folder():
    with refuse(r"no folder \./nowhere"):
        Checkpoint.open("./nowhere")


@pytest.mark.parametrize("there", [True, False])
def test_a_gguf_file_is_no_model_and_how_to_convert_it_is_said(tmp_path, there):
    path = tmp_path / "model.Q8_0.gguf"
    if there:
        path.write_bytes(b"GGUF")
    with refuse(rf"is a GGUF file: .*from_pretrained\('{tmp_path}', gguf_file='model.Q8_0.gguf'\)"):
        Checkpoint.open(path)


@pytest.mark.parametrize("fused", ["stacked", "multi-head per-group", "per-group"])
@pytest.mark.parametrize("transposed", [False, True])
def test_fused_projections_are_split_in_every_usual_order(fused, transposed, tmp_path):
    heads, kv, d, hidden = (4, 4, 8, 12) if fused.startswith("multi") else (6, 3, 8, 12)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, d, hidden, generator=g) for n in (heads, kv, kv))
    rows = torch.cat([q, k, v]) if fused == "stacked" else torch.cat([
        torch.cat([q[i * (heads // kv) : (i + 1) * (heads // kv)], k[i : i + 1], v[i : i + 1]]) for i in range(kv)
    ])  # fmt: skip
    weight = rows.flatten(0, 1)
    family = Family("x", "", "X", storage=Fused("qkv", "o", fused != "stacked"), transposed=transposed)
    architecture = Architecture(family, 1, heads, kv, d, hidden, d, 0)
    tensors = {
        "model.layers.0.qkv.weight": weight,
        "model.layers.0.qkv.bias": weight[:, 0],
        "model.layers.0.o.weight": torch.randn(hidden, heads * d),
    }
    list(
        write_shards(
            tmp_path, [(n, (t.T if transposed and t.ndim == 2 else t).clone()) for n, t in tensors.items()], 10**9
        )
    )
    (tmp_path / "config.json").write_text("{}")
    read = architecture.read(Checkpoint.open(tmp_path), 0)
    assert torch.equal(read.q, q) and torch.equal(read.k, k) and torch.equal(read.v, v)
    assert torch.equal(read.k_bias, k[:, :, 0]) and torch.equal(read.o.flatten(1), tensors["model.layers.0.o.weight"])
    written = dict(architecture.tensors("model.layers.0.", read))
    assert all(torch.equal(written[n].T if transposed and t.ndim == 2 else written[n], t) for n, t in tensors.items())


def test_rope_planes_in_either_pairing():
    half, interleaved = (
        Architecture(Family("x", "", "X", rope=r), 1, 2, 2, 8, 4, 4, 0) for r in ("half", "interleaved")
    )
    assert half.planes.tolist() == [[0, 2], [1, 3]] and interleaved.planes.tolist() == [[0, 1], [2, 3]]


def test_names_without_the_leading_model(models, tmp_path):
    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    folder = edit_weights(models("llama"), tmp_path / "bare", strip)
    a, b = (Checkpoint.open(f) for f in (folder, models("llama")))
    architecture = Architecture.of(a.config)
    assert torch.equal(architecture.read(a, 2).k, architecture.read(b, 2).k)


@pytest.mark.parametrize("shape", [[10**6] * 300_000, [2**63, 0], [1] * 65], ids=lambda shape: str(len(shape)))
def test_a_shape_that_no_tensor_has_is_refused_before_it_is_multiplied(shape):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(4)
    began = time.process_time()
    with pytest.raises(GrouperError, match="its header cannot be read"):
        read_header("x", lambda start, stop: content[start:stop], len(content))
    assert time.process_time() - began < 5
