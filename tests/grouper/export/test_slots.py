"""Exports that engines split over GPUs by tensor parallelism."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import split_models
import torch
from tiny_models import logits
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from grouper import Architecture, Checkpoint, ExportOptions, GrouperError, HeadLayout, export
from grouper.export.check import check_folder
from grouper.export.classes import class_for
from grouper.export.hf.slots import Slots, check_model_to_split, slots_for
from grouper.uptraining.exported import ExportedModel

KEPT = [  # family, query and KV heads, GPUs, heads of the export; every model keeps its heads
    ("llama", 28, 4, 8, (32, 4)), ("qwen2", 14, 2, 4, (16, 2)), ("mistral", 12, 2, 8, (16, 2)),
    ("llama", 12, 3, 2, (16, 4)), ("llama", 14, 14, 4, (16, 16)), ("qwen3", 10, 5, 2, (12, 6)),
    ("qwen2", 28, 7, 2, (32, 8)), ("gpt_oss", 10, 10, 4, (12, 12)),
]  # fmt: skip
TWO = [case for case in KEPT if case[4][1] % 2 == 0 and case[0] != "gpt_oss"]  # transformers copies no KV heads


def kept(models, family: str, heads: int, kv_heads: int) -> Path:
    experts = {"num_local_experts": 4} if family == "gpt_oss" else {}
    return models(family, heads=heads, kv_heads=kv_heads, hidden_size=336 if heads % 3 == 0 else 224, **experts)


def exported(folder: Path, target: Path, tp: int):
    layout = Architecture.of(Checkpoint.open(folder).config).ungrouped
    return export(folder, layout, target, options=ExportOptions(tp=tp, max_padding=9.0))


class SplitAttention(nn.Module):
    """An attention split by hand, as serving engines do it: each rank has consecutive query heads, and consecutive KV
    heads or a copy of one; the outputs of all ranks are summed."""

    def __init__(self, whole: nn.Module, config, ranks: int):
        super().__init__()
        heads, kv_heads, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        assert heads % ranks == 0 and (kv_heads % ranks == 0 or ranks % kv_heads == 0)
        own, own_kv = heads // ranks, max(1, kv_heads // ranks)
        less = type(config)(**{**config.to_dict(), "num_attention_heads": own, "num_key_value_heads": own_kv})
        less._attn_implementation = config._attn_implementation
        self.ranks = nn.ModuleList()
        for rank in range(ranks):
            queries = slice(rank * own * d, (rank + 1) * own * d)
            first = rank * kv_heads // ranks
            keys = slice(first * d, (first + own_kv) * d)
            part = type(whole)(less, layer_idx=0).eval()
            for name, tensor in whole.state_dict().items():
                if name.startswith(("q_proj", "k_proj", "v_proj")):
                    tensor = tensor[queries if name[0] == "q" else keys]
                elif name == "o_proj.weight":
                    tensor = tensor[:, queries]
                elif name == "o_proj.bias":
                    tensor = tensor / ranks
                elif name == "sinks":
                    tensor = tensor[rank * own : (rank + 1) * own]
                part.get_parameter(name).data = tensor
            self.ranks.append(part)

    def forward(self, hidden_states, **kwargs):
        return sum(part(hidden_states, **kwargs)[0] for part in self.ranks), None


@pytest.mark.parametrize(("family", "heads", "kv_heads", "tp", "padded"), KEPT)
def test_a_model_that_keeps_its_heads_is_split(models, tmp_path, prompt, family, heads, kv_heads, tp, padded):
    folder = kept(models, family, heads, kv_heads)
    done = exported(folder, tmp_path / "out", tp)
    assert done.self_test.passed and done.export_class == "padded" and done.tp == tp
    config = AutoConfig.from_pretrained(tmp_path / "out", trust_remote_code=False)
    assert (config.num_attention_heads, config.num_key_value_heads) == padded
    wanted = logits(folder, prompt)
    assert (logits(tmp_path / "out", prompt) - wanted).abs().max() < 1e-4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, trust_remote_code=False).eval()
    for layer in model.model.layers:
        layer.self_attn = SplitAttention(layer.self_attn, model.config, tp)
    with torch.inference_mode():
        assert (model(prompt, use_cache=False).logits - wanted).abs().max() < 1e-4


def test_two_ranks_of_transformers_give_the_logits_of_one(models, tmp_path, prompt):
    """Two processes over gloo, with transformers' own plan of tensor parallelism."""
    folders, wanted = [], []
    for number, (family, heads, kv_heads, _, _) in enumerate(TWO):
        folder = kept(models, family, heads, kv_heads)
        exported(folder, tmp_path / str(number), 2)
        folders.append(tmp_path / str(number))
        wanted.append(logits(folder, prompt))
    torch.save(prompt, tmp_path / "tokens.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, split_models.__file__, tmp_path / "tokens.pt", *folders]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **known, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    for folder, whole in zip(folders, wanted):
        assert (torch.load(folder / "split.pt") - whole).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("sizes", "tp", "slots"),
    [
        ((2, 2), 1, (2, 2)), ((2, 2), 2, (2, 2)), ((2, 2), 4, (2, 2)), ((3, 1), 4, (2, 4)), ((3, 1), 1, (2, 3)),
        ((4,), 8, (1, 8)), ((3,), 2, (1, 4)), ((2, 1, 1), 2, (4, 2)), ((2, 1, 1), 3, (3, 2)), ((1,) * 5, 8, (8, 1)),
        ((1,) * 5, 4, (8, 1)), ((1,) * 6, 12, (6, 2)), ((1,) * 5, 12, (6, 2)),
    ],
)  # fmt: skip
def test_the_fewest_slots_that_can_be_split(sizes, tp, slots):
    labels = [group for group, size in enumerate(sizes) for _ in range(size)]
    found = slots_for(HeadLayout.from_labels([labels], len(labels), 8), tp)
    assert found == Slots(*slots) and found.query_heads % tp == 0


def test_a_layout_that_can_be_split_stays_stock(models, tmp_path):
    folder = models("llama", heads=8, kv_heads=4)
    done = export(folder, Architecture.of(Checkpoint.open(folder).config).ungrouped, tmp_path / "out",
                  options=ExportOptions(tp=4))  # fmt: skip
    assert (done.export_class, done.note, done.padding_bytes, done.tp) == ("stock", None, 0, 4)


def test_zero_heads_are_counted(models, tmp_path):
    """Five KV heads become six, ten query heads twelve: two heads of q and o and one of K and V a layer, in float32."""
    folder = kept(models, "qwen3", 10, 5)
    done = exported(folder, tmp_path / "out", 2)
    assert done.padding_bytes == 3 * (2 * 2 + 2) * 16 * 224 * 4 == done.weight_bytes[1] - done.weight_bytes[0]
    assert done.kv_bytes_per_token == (3 * 2 * 5 * 16 * 2, 3 * 2 * 6 * 16 * 2)
    assert "and from 5 to 6 KV heads, with 20% more KV cache" in done.note
    share = f"{done.padding_bytes / done.weight_bytes[1]:.1%}"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{done.padding_bytes:,} bytes of the weights ({share}) are zero heads" in card and "over 2 GPUs" in card
    assert "1,152 bytes of KV cache per token in bfloat16 instead of 960 (120.0%)" in card
    report = json.loads((tmp_path / "out" / "grouper.json").read_text())["report"]
    assert (report["tp"], report["padding_bytes"]) == (2, done.padding_bytes)


def test_a_folder_to_split_is_read_and_checked_again(models, tmp_path):
    folder = kept(models, "qwen3", 10, 5)
    exported(folder, tmp_path / "out", 2)
    assert check_folder(tmp_path / "out", str(folder)).passed
    model, original = ExportedModel.open(tmp_path / "out", str(folder)), Checkpoint.open(folder)
    assert model.tp == 2
    found, wanted = model.layer(1).attention, Architecture.of(original.config).read(original, 1)
    for name in ("q", "k", "v", "o", "q_norm", "k_norm"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


@pytest.mark.parametrize(
    ("family", "tp", "more", "why"),
    [
        ("olmo2", 3, {}, "no class carries olmo2 models"), ("llama", 5, {}, "does not divide intermediate_size 96"),
        ("llama", 0, {}, "expected a number of GPUs from 1 to 1,024"), ("llama", 1025, {}, "expected a number of GPUs"),
        ("llama", 3, {"max_padding": 0.01}, "more than `max_padding=1%`"),
        ("llama", 3, {"format": "gguf"}, "llama.cpp splits any number of heads"),
        ("gpt2", 2, {}, "no class of transformers holds gpt2"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused_in_one_line(models, tmp_path, family, tp, more, why):
    folder = models(family, heads=8) if family != "gpt2" else models("gpt2", heads=4, n_inner=96)
    layout = Architecture.of(Checkpoint.open(folder).config).ungrouped
    with pytest.raises(GrouperError, match=why) as refused:
        export(folder, layout, tmp_path / "out", options=replace(ExportOptions(tp=tp), **more))
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_counts_that_differ_cannot_be_split(models):
    folder = models("llama", heads=8)
    checkpoint = Checkpoint.open(folder)
    layout = HeadLayout.from_labels([[0, 0, 0, 0, 1, 1, 1, 1], [0] * 8, [0] * 8], 8, 16)
    with pytest.raises(GrouperError, match=r"only layouts of class stock and padded .*, this one is ragged"):
        class_for(checkpoint, Architecture.of(checkpoint.config), layout, 9.0, 2)


def test_experts_are_no_mlp_to_split():
    check_model_to_split({"intermediate_size": 97, "num_experts": 4}, 2)
