"""Tiny random models of real transformers classes, made once a session; the model in the box; planted groupings."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from grouper.text import DATA

torch.set_num_threads(1)  # workers of pytest-xdist share the cores

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 199, "max_position_embeddings": 256}


def make_model(
    folder: Path, family: str = "llama", heads: int = 8, kv_heads: int | None = None, seed: int = 0, shards: str = "10GB", **more
):
    """Save a random model with weights large enough that heads matter."""
    from transformers import AutoConfig, AutoModelForCausalLM

    more = {"head_dim": 16, "bos_token_id": 0, "eos_token_id": 1, **SIZES, **more}
    config = AutoConfig.for_model(family, num_attention_heads=heads, num_key_value_heads=kv_heads or heads, **more)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif "bias" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder, max_shard_size=shards)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """models("qwen2", heads=8, kv_heads=4): the folder of such a model."""
    made = {}

    def get(family: str = "llama", **options) -> Path:
        key = (family, *sorted(options.items()))
        if key not in made:
            made[key] = make_model(tmp_path_factory.mktemp(family), family, **options)
        return made[key]

    return get


def edit_weights(source: Path, target: Path, edit) -> Path:
    """A copy of a single-file model with its tensors changed in place by `edit(tensors)`."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    tensors = load_file(target / "model.safetensors")
    edit(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A short text."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((DATA / "addresses-1977-2016.txt").read_text()[:60_000])
    return path


@pytest.fixture(scope="session")
def reader(tmp_path_factory) -> Path:
    """A random multi-head model with a tokenizer."""
    return add_tokenizer(make_model(tmp_path_factory.mktemp("reader"), vocab_size=4096))


def add_tokenizer(folder: Path) -> Path:
    """That of the model in the box, for a model with a vocabulary of 4,096."""
    for file in (DATA / "demo").glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture
def planted(models, tmp_path):
    """A model whose K and V heads are copies of one another in shuffled groups of two. Returns (folder, labels per layer)."""
    generator = torch.Generator().manual_seed(3)
    labels = [torch.randperm(8, generator=generator) // 2 for _ in range(SIZES["num_hidden_layers"])]

    def copy_heads(tensors):
        for layer, groups in enumerate(labels):
            for kind in ("k", "v"):
                name = f"model.layers.{layer}.self_attn.{kind}_proj.weight"
                heads = tensors[name].view(8, 16, -1)
                tensors[name] = heads[groups].flatten(0, 1).contiguous()  # head h becomes head number groups[h]

    return edit_weights(models("llama"), tmp_path / "planted", copy_heads), [row.tolist() for row in labels]


@pytest.fixture(scope="session")
def prompt() -> torch.Tensor:
    return torch.randint(2, SIZES["vocab_size"], (2, 24), generator=torch.Generator().manual_seed(1))


def logits(folder: Path, tokens: torch.Tensor, **options) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True, **options).eval()
    with torch.inference_mode():
        return model(tokens).logits
