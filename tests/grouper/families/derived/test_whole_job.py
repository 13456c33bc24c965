"""A type that no code of ours names, from search to export and back, by the command line."""

import json

import numpy as np
import pytest
import torch
from commands import grouper
from family_samples import check_identity, check_planted, check_reference, check_refined, layout_for
from tiny_models import add_tokenizer

from grouper import Checkpoint, export
from grouper.families.decoders import FAMILIES
from grouper.families.derived.random_models import make_heads_matter

SIZES = {
    "vocab_size": 4096, "hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
TYPES = ("arcee", "glm4")


@pytest.fixture(scope="module")
def unknown(tmp_path_factory):
    made = {}

    def get(model_type: str):
        from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

        if model_type not in CONFIG_MAPPING:
            pytest.skip(f"the installed transformers has no {model_type}")
        if model_type not in made:
            torch.manual_seed(0)
            config = AutoConfig.for_model(model_type, **SIZES)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            make_heads_matter(model)
            made[model_type] = tmp_path_factory.mktemp(model_type)
            model.save_pretrained(made[model_type])
            add_tokenizer(made[model_type])
        return made[model_type]

    return get


@pytest.mark.parametrize("model_type", TYPES)
def test_inspect_search_export_uptrain_evaluate(unknown, tmp_path, text, model_type):
    assert model_type not in FAMILIES
    model, run, out = unknown(model_type), tmp_path / "run", tmp_path / "out"
    found = grouper("inspect", model)
    assert found.returncode == 0, found.stderr
    assert "on a small model of this class)" in " ".join(found.stdout.split()).replace("\n", " ")
    source = ("--text", text, "--tokens", 2048, "--window", 64)
    done = grouper("search", model, "-o", run, *source, "--generations", 2, "--population", 8)
    assert done.returncode == 0, done.stderr
    done = grouper("evaluate", run, "--text", text, "--layouts", 0, "--limit", 2, "--window", 32)
    assert done.returncode == 0, done.stderr
    refined = ("--text", text, "--refine-tokens", 512)
    done = grouper("export", run, "-o", out, "--kv-ratio", "1/2", *refined)
    assert done.returncode == 0 and "self-test passed" in done.stdout, done.stderr
    assert json.loads((out / "config.json").read_text())["num_key_value_heads"] == 2
    done = grouper("export", run, "-o", tmp_path / "uneven", "--kv-ratio", "3/4", "--deploy", "any", "--no-refine")
    assert done.returncode == 0 and "self-test passed" in done.stdout, done.stderr
    done = grouper(
        "uptrain",
        out,
        "-o",
        tmp_path / "healed",
        "--text",
        text,
        "--tokens",
        1024,
        "--step-tokens",
        256,
        "--window",
        64,
    )
    assert done.returncode == 0, done.stderr
    assert grouper("check", tmp_path / "healed").returncode == 0


def test_the_matrix_of_families(unknown, tmp_path):
    """As for families with an entry."""
    folder, prompt = unknown("seed_oss"), torch.randint(3, 4000, (2, 24), generator=torch.Generator().manual_seed(1))
    check_identity(folder, tmp_path / "identity", prompt, "spectral")
    rows = {"stock": [[0, 1, 0, 1]] * 2, "padded": [[0, 0, 1, 0]] * 2, "ragged": [[0, 0, 1, 0], [0, 1, 2, 1]]}
    layouts = {kind: layout_for(folder, labels) for kind, labels in rows.items()}
    check_reference(folder, tmp_path, prompt, layouts)
    (tmp_path / "p").mkdir()
    check_planted(folder, tmp_path / "p", prompt, [[0, 1, 0, 1], [1, 0, 0, 1]])
    windows = torch.randint(2, 4000, (12, 16), generator=torch.Generator().manual_seed(0))
    (tmp_path / "r").mkdir()
    check_refined(folder, tmp_path / "r", prompt, [layouts["ragged"], layouts["stock"]], windows)
    assert Checkpoint.open(folder).config["model_type"] == "seed_oss"


def test_a_vision_language_model_around_a_decoder_without_an_entry(tmp_path, prompt):
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForImageTextToText

    if "arcee" not in CONFIG_MAPPING:
        pytest.skip("the installed transformers has no arcee")
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
    }  # fmt: skip
    text = {**SIZES, "vocab_size": 199, "model_type": "arcee"}
    torch.manual_seed(0)
    config = AutoConfig.for_model("llava", text_config=text, vision_config=vision, image_token_index=198)
    model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    make_heads_matter(model)
    model.save_pretrained(tmp_path / "in")
    done = export(tmp_path / "in", layout_for(tmp_path / "in", [[0, 1, 0, 1], [0, 1, 1, 0]]), tmp_path / "out")
    assert (done.export_class, done.loader) == ("stock", "AutoModelForImageTextToText") and done.self_test.passed
    written = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    assert (written["model_type"], written["num_key_value_heads"]) == ("arcee", 2)


def test_an_encoder_of_proteins_from_token_ids(tmp_path):
    """ESM-2 without a tokenizer: search, refinement, export, training."""
    from transformers import EsmConfig, EsmForMaskedLM

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 33, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
        "max_position_embeddings": 64, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary",
    }  # fmt: skip
    model = EsmForMaskedLM(EsmConfig(**sizes))
    make_heads_matter(model)
    model.save_pretrained(tmp_path / "esm")
    ids = str(tmp_path / "ids.npy")
    np.save(ids, np.random.default_rng(0).integers(4, 24, (300, 40)))
    run, out = tmp_path / "run", tmp_path / "out"
    small = ("--tokens", 2048, "--window", 16)
    for command in (
        ("search", tmp_path / "esm", "-o", run, "--text", ids, *small, "--generations", 2, "--population", 8),
        ("evaluate", run, "--text", ids, "--layouts", 0, "--limit", 4, "--window", 16),
        ("export", run, "-o", out, "--kv-ratio", "1/2", "--text", ids, "--refine-tokens", 512),
        ("uptrain", out, "-o", tmp_path / "healed", "--text", ids, "--tokens", 1024, "--step-tokens", 256, *small[2:]),
    ):
        done = grouper(*command)
        assert done.returncode == 0, done.stderr
    assert "class ragged" in grouper("export", run, "-o", tmp_path / "again", "--kv-ratio", "1/2", "--no-refine").stdout
