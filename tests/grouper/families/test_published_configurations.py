"""Configurations as published, shrunk, through the whole job: nothing that transformers edits may reach what we read,
fingerprint or write."""

import copy
import json

import pytest
import torch
from encoder_samples import SAMPLES as ENCODERS
from family_samples import SAMPLES, make_heads_matter
from tiny_models import add_tokenizer

from grouper import Architecture, Checkpoint, GrouperError, TextSource
from grouper.families.configuration import configured
from grouper.model.loadable import check_model
from grouper.running.in_memory import InMemoryModel
from search import RunFolder, SearchOptions, Selection, evaluate, export_from_run, search

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
PUBLISHED = {  # what their config.json says beside the sizes; factors are shorter, as heads are
    "Phi-3.5-mini": {
        "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "sliding_window": 262144,
        "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_theta": 10000.0,
        "rope_scaling": {
            "long_factor": [1.08, 1.1, 1.3, 2.0], "short_factor": [1.0, 1.02, 1.03, 1.05], "type": "longrope",
        },
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0, "rms_norm_eps": 1e-05,
    },
    "Phi-3-mini-128k": {
        "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "sliding_window": 262144, "rope_theta": 10000.0,
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        "rope_scaling": {
            "long_factor": [1.03, 1.05, 1.1, 1.3], "short_factor": [1.0, 1.0, 1.02, 1.1], "type": "longrope",
        },
    },
    "Phi-4-mini": {
        "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "sliding_window": 262144, "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75, "tie_word_embeddings": True, "full_attn_mod": 1, "interpolate_factor": 1,
        "lm_head_bias": False, "mlp_bias": False, "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"long_factor": [1, 1.11, 1.25], "short_factor": [1.0, 1.0, 1.0], "type": "longrope"},
    },
    "Yarn-Mistral-128k": {
        "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 131072,
        "max_position_embeddings": 32768, "max_sequence_length": 131072, "rope_theta": 10000.0,
        "auto_map": {"AutoModelForCausalLM": "modeling_mistral_yarn.MistralForCausalLM"},
        "rope_scaling": {"factor": 16.0, "finetuned": True, "original_max_position_embeddings": 8192, "type": "yarn"},
    },
    "Qwen2.5-1M": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 1010000,
        "max_window_layers": 28, "rope_theta": 10000000.0, "sliding_window": 32768, "use_sliding_window": False,
        "dual_chunk_attention_config": {
            "chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144,
        },
    },
    "Mistral with a linear scaling": {
        "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 64, "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
}  # fmt: skip


def published(folder, name: str):
    """A random model whose config.json is the published one."""
    from transformers import AutoModelForCausalLM

    config = {**SIZES, **PUBLISHED[name]}
    torch.manual_seed(0)
    without = configured({k: v for k, v in config.items() if k != "auto_map"})
    model = AutoModelForCausalLM.from_config(without, trust_remote_code=False)
    make_heads_matter(model)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return add_tokenizer(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_goes_through_the_whole_job(tmp_path, name):
    from transformers import AutoModelForCausalLM

    folder, run, out = published(tmp_path / "in", name), tmp_path / "run", tmp_path / "out"
    before = (folder / "config.json").read_text()
    search(folder, run, SearchOptions(generations=2, population=8, fitness="weight"))
    evaluate(run, TextSource("demo", purpose="evaluation"), layouts="0", limit=2, window=32)
    done = export_from_run(run, out, Selection(kv_ratio="1/2"))
    assert done.self_test.passed and RunFolder.open(run).settings.model == str(folder)
    assert (folder / "config.json").read_text() == before
    rope = json.loads(before).get("rope_scaling")
    if rope:  # written as it was read, less what readers of today spell otherwise
        written = json.loads((out / "config.json").read_text())["rope_scaling"]
        assert {k: v for k, v in written.items() if k not in ("rope_type", "rope_theta")}.items() >= rope.items()
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)
    assert model.config.num_key_value_heads == 2
    assert torch.isfinite(model(torch.arange(3, 40)[None]).logits).all()


def test_what_transformers_refuses_is_refused_in_one_line():
    """An early release of Phi-3-mini-128k called its scaling "su", which no longer loads."""
    scaling = {**PUBLISHED["Phi-3-mini-128k"]["rope_scaling"], "type": "su"}
    with pytest.raises(GrouperError, match=r"transformers does not take this config\.json \(KeyError: .*required"):
        Architecture.of({**SIZES, **PUBLISHED["Phi-3-mini-128k"], "rope_scaling": scaling})


@pytest.mark.parametrize("name", [*SAMPLES, *PUBLISHED])
def test_no_familys_configuration_is_changed(samples, tmp_path, name):
    """Neither the object that is handed in nor what a checkpoint gives out."""
    folder = published(tmp_path / "in", name) if name in PUBLISHED else samples(name)
    check_unchanged(folder)


@pytest.mark.parametrize("name", ENCODERS)
def test_no_encoders_configuration_is_changed(encoders, name):
    check_unchanged(encoders(name))


def check_unchanged(folder) -> None:
    on_disk = json.loads((folder / "config.json").read_text())
    given = copy.deepcopy(on_disk)
    Architecture.of(given)
    configured(given)
    assert given == on_disk
    checkpoint = Checkpoint.open(folder)
    fingerprint = checkpoint.fingerprint
    Architecture.of(checkpoint.config)
    check_model(checkpoint)
    InMemoryModel(checkpoint)
    checkpoint.config["model_type"] = "another"
    assert checkpoint.config == on_disk and checkpoint.fingerprint == fingerprint
    assert Checkpoint.open(folder).fingerprint == fingerprint
