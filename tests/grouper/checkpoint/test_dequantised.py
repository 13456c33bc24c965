"""Quantised checkpoints are read as bfloat16: values by hand, and what transformers itself makes of them."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import add_tokenizer, make_model

from grouper import Checkpoint, GrouperError
from grouper.checkpoint import dequantised
from grouper.checkpoint.quantised_formats import FORMATS, scaled, unpacked
from grouper.model.loadable import check_model
from grouper.running.in_memory import InMemoryModel
from search import SearchOptions, Selection, export_from_run, search

BLOCK = [32, 48]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUPER_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "dequantised"


def quantised(folder, scheme: dict, change):
    """The folder with its tensors changed in place by change(tensors), and this quantization_config."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": scheme}))
    return folder


def to_fp8(tensors: dict) -> None:
    """Linear weights of the layers in FP8, with a scale for each block of 32 x 48, the last ones cut."""
    for name in [n for n in tensors if "proj" in n]:
        weight = tensors[name].float()
        rows, columns = (-(-size // block) for size, block in zip(weight.shape, BLOCK))
        scale = torch.rand(rows, columns, generator=torch.Generator().manual_seed(len(name))) + 0.5
        whole = torch.kron(scale, torch.ones(BLOCK))[: weight.shape[0], : weight.shape[1]]
        tensors[name] = (weight / whole).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale


@pytest.fixture
def fp8(tmp_path):
    folder = add_tokenizer(make_model(tmp_path / "fp8", vocab_size=4096, dtype="bfloat16"))
    original = load_file(folder / "model.safetensors")
    scheme = {"quant_method": "fp8", "weight_block_size": BLOCK, "activation_scheme": "dynamic"}
    return quantised(folder, scheme, to_fp8), original


def test_scales_by_hand():
    weight = torch.tensor([[1.0, 2.0, 4.0], [8.0, -1.5, 0.5]]).to(torch.float8_e4m3fn)
    blocks = scaled(weight, torch.tensor([[2.0, 0.5]]), [2, 2])  # the second block has one column
    assert blocks.dtype == torch.bfloat16 and blocks.tolist() == [[2, 4, 2], [16, -3, 0.25]]
    assert scaled(weight, torch.tensor(3.0), None).tolist() == [[3, 6, 12], [24, -4.5, 1.5]]
    assert scaled(weight, torch.tensor([[128, 126]], dtype=torch.uint8), [2, 2]).tolist() == blocks.tolist()
    experts = scaled(weight.expand(2, 2, 3), torch.tensor([[[2.0, 0.5]], [[1.0, 1.0]]]), [2, 2])
    assert experts[0].tolist() == blocks.tolist() and experts[1].tolist() == weight.float().tolist()


@pytest.mark.parametrize(
    ("scale", "block", "said"),
    [
        ([[2.0, 0.5]], [2, 1], r"scales of shape \[1, 2\]: expected \[1, 3\]"),
        ([[2.0, 0.5]], [2, 10**12], r"expected \[1, 1\]"),
        ([[2.0, 0.5]], [0, 2], r"weight_block_size \[0, 2\]: expected two numbers above 0"),
        ([[2.0, 0.5]], "2x2", "weight_block_size '2x2'"),
    ],
)
def test_scales_that_fit_no_blocks_are_refused(scale, block, said):
    with pytest.raises(GrouperError, match=said):
        scaled(torch.ones(2, 3), torch.tensor(scale), block)


def test_a_configuration_is_checked_before_a_copy_is_made(fp8, home):
    folder, _ = fp8
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    with pytest.raises(GrouperError, match="num_hidden_layers 1000000000: expected a whole number"):
        Checkpoint.open(folder)
    assert not (home / "dequantised").exists()


def test_inspect_writes_no_copy(fp8, home):
    """It promises to read headers alone."""
    folder, _ = fp8
    with pytest.raises(GrouperError, match="writes a bfloat16 copy of it first and reads that; inspect the original"):
        Checkpoint.open(folder, write=False)
    assert not (home / "dequantised").exists()
    copy = Checkpoint.open(folder)
    assert Checkpoint.open(folder, write=False).folder == copy.folder


def test_an_fp8_model_is_read_as_bfloat16(fp8, home, caplog):
    (folder, original), caplog.handler.level = fp8, logging.WARNING
    checkpoint = Checkpoint.open(folder)
    assert f"{folder} is quantised (fp8): read as bfloat16 from {home}" in caplog.text
    assert checkpoint.dequantised_from == "fp8" and checkpoint.place == str(folder) and checkpoint.title == "fp8"
    assert set(checkpoint.tensors) == set(original) and "quantization_config" not in checkpoint.config
    assert checkpoint.config["dtype"] == "bfloat16" and checkpoint.folder.parent == home
    check_model(checkpoint)
    for (
        name,
        tensor,
    ) in original.items():  # 3 bits of mantissa: a sixteenth of the value at most, and a subnormal's step
        assert torch.allclose(checkpoint.tensor(name).float(), tensor.float(), rtol=0.07, atol=0.004)
    assert not torch.equal(checkpoint.tensor("model.layers.0.self_attn.k_proj.weight").float(), tensor)
    InMemoryModel(checkpoint)
    before = [*home.iterdir()]
    caplog.clear()
    assert Checkpoint.open(folder).fingerprint == checkpoint.fingerprint
    assert [*home.iterdir()] == before and not caplog.text


def test_fp8_is_what_transformers_makes_of_it(tmp_path, monkeypatch):
    """With blocks that divide the weights, which transformers 5.24 needs."""
    monkeypatch.setitem(globals(), "BLOCK", [16, 32])
    folder = make_model(tmp_path / "fp8", dtype="bfloat16")
    quantised(folder, {"quant_method": "fp8", "weight_block_size": [16, 32], "activation_scheme": "dynamic"}, to_fp8)
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=FineGrainedFP8Config(dequantize=True), trust_remote_code=False
    )
    checkpoint, known = Checkpoint.open(folder), theirs.state_dict()
    assert all(torch.equal(checkpoint.tensor(name), known[name]) for name in checkpoint.tensors)


def test_mxfp4_by_hand(tmp_path, monkeypatch):
    """Codes 0 to 15 are 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives; a byte holds the first number in its low
    half."""
    monkeypatch.setattr(dequantised, "SHARD", 40_000)  # several files
    folder = make_model(tmp_path / "oss", "gpt_oss", kv_heads=2, num_local_experts=2, num_experts_per_tok=1,
                        intermediate_size=64, dtype="bfloat16")  # fmt: skip

    def pack(tensors: dict) -> None:
        for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
            experts, columns, rows = tensors.pop(name).shape
            blocks = torch.full((experts, rows, columns // 32, 16), 0x27, dtype=torch.uint8)  # 6, 1, 6, 1, ...
            blocks[1, 0, 0, 0] = 0x9F  # -6, -0.5
            tensors[f"{name}_blocks"] = blocks
            tensors[f"{name}_scales"] = torch.full((experts, rows, columns // 32), 128, dtype=torch.uint8)
            tensors[f"{name}_scales"][1, 0, 0] = 126

    original = set(load_file(folder / "model.safetensors"))
    checkpoint = Checkpoint.open(quantised(folder, {"quant_method": "mxfp4"}, pack))
    assert set(checkpoint.tensors) == original and len(checkpoint.weight_files) > 1
    check_model(checkpoint)
    gate = checkpoint.tensor("model.layers.0.mlp.experts.gate_up_proj")  # [experts, hidden, 2 * intermediate]
    assert gate.dtype == torch.bfloat16 and gate.shape == (2, 64, 128)
    assert gate[0, :4, 5].tolist() == [12, 2, 12, 2]  # times 2 ** (128 - 127)
    assert gate[1, :4, 0].tolist() == [-3, -0.25, 3, 0.5]  # times 2 ** (126 - 127)
    InMemoryModel(checkpoint)


def packed(codes: list[int], bits: int = 4) -> int:
    """Numbers in an int32, from its low end on, as torch stores it."""
    whole = sum(code << bits * place for place, code in enumerate(codes))
    return whole - 2**32 if whole >= 2**31 else whole


def read_as(method: str, tensors: dict, **scheme) -> dict:
    named = FORMATS[method](dict.fromkeys(tensors), tensors.__getitem__, {"quantization_config": scheme})
    return {name: loaded() for name, loaded in named}


@pytest.mark.parametrize("later", [False, True])
def test_gptq_by_hand(later):
    """One int32 holds 8 inputs of an output; zeros hold 8 outputs, here 8 of each group, stored as 7 in the first
    format."""
    zeros = packed([8 if later else 7] * 8)
    tensors = {
        "a.qweight": torch.tensor([[packed([8, 9, 7, 15, 0, 8, 8, 10])] + [packed([8] * 8)] * 7], dtype=torch.int32),
        "a.qzeros": torch.tensor([[zeros], [zeros]], dtype=torch.int32),
        "a.scales": torch.tensor([[0.5] * 8, [2.0] * 8]),
        "a.bias": torch.ones(8), "b.weight": torch.ones(2),
    }  # fmt: skip
    scheme = {"bits": 4, "group_size": 4, **({"checkpoint_format": "gptq_v2"} if later else {})}
    found = read_as("gptq", tensors, **scheme)
    assert list(found) == ["a.weight", "a.bias", "b.weight"] and found["a.weight"].shape == (8, 8)
    assert found["a.weight"][0].tolist() == [0, 0.5, -0.5, 3.5, -16, 0, 0, 4]  # the second four are of scale 2
    assert found["a.weight"].dtype == torch.bfloat16 and not found["a.weight"][1:].any()
    tensors["a.g_idx"] = torch.tensor([1, 1, 0, 0, 0, 0, 1, 1], dtype=torch.int32)
    assert read_as("gptq", tensors, **scheme)["a.weight"][0].tolist() == [0, 2, -0.5, 3.5, -4, 0, 0, 4]
    with pytest.raises(GrouperError, match="GPTQ of 3 bits is not read"):
        read_as("gptq", tensors, bits=3)


def test_awq_by_hand():
    """One int32 holds 8 outputs of an input, the even ones before the odd ones."""
    places = [0, 2, 4, 6, 1, 3, 5, 7]  # outputs, from the low end on
    codes = [3, 4, 5, 6, 7, 8, 9, 10]
    tensors = {
        "a.qweight": torch.tensor([[packed([codes[i] for i in places])], [packed([0] * 8)]], dtype=torch.int32),
        "a.qzeros": torch.tensor([[packed(places)]], dtype=torch.int32),
        "a.scales": torch.tensor([[1.0, 1, 1, 1, 1, 1, 1, 0.5]]),
    }  # fmt: skip
    weight = read_as("awq", tensors, bits=4, version="gemm")["a.weight"]  # minus zeros 0 to 7
    assert weight.tolist() == [[3, 0], [3, -1], [3, -2], [3, -3], [3, -4], [3, -5], [3, -6], [1.5, -3.5]]
    with pytest.raises(GrouperError, match="version gemv is not read"):
        read_as("awq", tensors, bits=4, version="GEMV")


def test_the_sign_bit_is_a_bit():
    assert unpacked(torch.tensor([[-1]], dtype=torch.int32), 8).tolist() == [[255] * 4]
    assert unpacked(torch.tensor([[packed([1, 2, 3, 0, 0, 0, 0, 15])]], dtype=torch.int32), 4).tolist() == [
        [1, 2, 3, 0, 0, 0, 0, 15]
    ]


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_packed_model_is_read(tmp_path, method):
    folder = make_model(tmp_path / method, dtype="bfloat16")
    original = load_file(folder / "model.safetensors")

    def pack(tensors: dict) -> None:
        for name in [n for n in tensors if "proj" in n]:
            weight, layer = tensors.pop(name).float().T, name.removesuffix(".weight")  # [inputs, outputs]
            scales = (weight.abs().amax(0, keepdim=True) / 7).bfloat16().float()
            codes = ((weight / scales).round().clamp(-8, 7) + 8).long()
            places = [0, 2, 4, 6, 1, 3, 5, 7] if method == "awq" else range(8)
            rows = codes.tolist() if method == "awq" else codes.T.tolist()
            words = [[packed([row[i + j] for j in places]) for i in range(0, len(row), 8)] for row in rows]
            words = torch.tensor(words, dtype=torch.int32)
            tensors[f"{layer}.qweight"] = words if method == "awq" else words.T.contiguous()
            zero = packed([8 if method == "awq" else 7] * 8)
            tensors[f"{layer}.qzeros"] = torch.full((1, weight.shape[1] // 8), zero, dtype=torch.int32)
            tensors[f"{layer}.scales"] = scales.half()

    scheme = {"quant_method": method, "bits": 4, "group_size": -1}
    checkpoint = Checkpoint.open(quantised(folder, scheme, pack))
    check_model(checkpoint)
    assert set(checkpoint.tensors) == set(original) and checkpoint.dequantised_from == method
    for name, tensor in original.items():
        error = (checkpoint.tensor(name).float() - tensor.float()).norm() / tensor.float().norm()
        assert error < 0.15, name


def test_the_card_says_so_and_the_run_opens_again(fp8, tmp_path):
    folder, _ = fp8
    search(folder, tmp_path / "run", SearchOptions(fitness="weight", generations=2, population=8), jobs=1)
    export_from_run(tmp_path / "run", tmp_path / "out", Selection(kv_ratio="1/2"))
    assert (
        "The original is quantised (`fp8`); weights are dequantised to bfloat16."
        in (tmp_path / "out" / "README.md").read_text()
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "bfloat16"
    assert {info.dtype for info in Checkpoint.open(tmp_path / "out").tensors.values()} == {"BF16"}


def test_another_file_is_another_copy_and_a_broken_one_is_none(fp8, home, tmp_path):
    folder, _ = fp8
    first = Checkpoint.open(folder)
    other = shutil.copytree(folder, tmp_path / "other")
    quantised(other, {"quant_method": "fp8", "weight_block_size": BLOCK}, lambda tensors: tensors.popitem())
    assert Checkpoint.open(other).folder != first.folder
    shutil.rmtree(home)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(GrouperError, match="truncated or corrupt"):
        Checkpoint.open(folder)
    assert not [path for path in home.iterdir() if path.is_dir()]


def test_only_files_that_transformers_reads_are_copied(tmp_path):
    folder = make_model(tmp_path / "fp8", dtype="bfloat16")
    names = set(load_file(folder / "model.safetensors"))
    quantised(folder, {"quant_method": "fp8", "weight_block_size": BLOCK}, to_fp8)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    scales = {name for name in tensors if name.endswith("_scale_inv")}  # apart from their weights
    parts = {"a.safetensors": set(tensors) - scales, "b.safetensors": scales}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    save_file({"other.names": torch.ones(2)}, folder / "consolidated.safetensors")
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(Checkpoint.open(folder).tensors) == names
    (folder / "b.safetensors").rename(folder / "c.safetensors")
    with pytest.raises(GrouperError, match=r"names b\.safetensors, which is missing"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("method", ["bitsandbytes", "compressed-tensors"])
def test_methods_need_their_package(models, tmp_path, method, monkeypatch, home):
    folder = shutil.copytree(models("llama"), tmp_path / "q")
    quantised(folder, {"quant_method": method}, lambda tensors: None)
    monkeypatch.setattr(dequantised, "find_spec", lambda package: None)
    with pytest.raises(
        GrouperError, match=rf"quantised by {method}: use the original; or pip install .*dequantize\(\)"
    ):
        Checkpoint.open(folder)
    assert not home.exists()


def test_a_model_too_large_for_the_disk_is_refused(fp8, monkeypatch, home):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: type("Use", (), {"free": 10}))
    with pytest.raises(GrouperError, match=r"GB in bfloat16, more than is free in .*GROUPER_HOME"):
        Checkpoint.open(fp8[0])


@pytest.mark.parametrize("package", ["bitsandbytes", "compressed_tensors"])
def test_what_transformers_dequantises_as_a_whole(tmp_path, package):
    """Where the package is installed."""
    pytest.importorskip(package)
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = make_model(tmp_path / "model", dtype="bfloat16", hidden_size=128, intermediate_size=128)
    original = load_file(folder / "model.safetensors")
    if package == "bitsandbytes":
        scheme = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        made = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=scheme, dtype=torch.bfloat16, trust_remote_code=False
        )
        made.save_pretrained(tmp_path / "quantised")
    else:
        group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel",
                 "symmetric": True, "dynamic": False}}  # fmt: skip
        scheme = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
                  "quantization_status": "compressed", "config_groups": {"group_0": group}}  # fmt: skip

        def to_channels(tensors: dict) -> None:
            for name in [n for n in tensors if "proj" in n]:
                scale = tensors[name].float().abs().amax(1, keepdim=True) / 448
                tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
                tensors[f"{name}_scale"] = scale.bfloat16()

        quantised(shutil.copytree(folder, tmp_path / "quantised"), scheme, to_channels)
    checkpoint = Checkpoint.open(tmp_path / "quantised")
    check_model(checkpoint)
    for name, tensor in original.items():
        error = (checkpoint.tensor(name).float() - tensor.float()).norm() / tensor.float().norm()
        assert error < 0.12, name
