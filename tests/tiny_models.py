"""Tiny random models of real transformers classes, and what tests do with them."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from grouper.calibration.source import DATA

ROOT = Path(__file__).parent.parent
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 199,
    "max_position_embeddings": 256
}  # fmt: skip


def make_model(
    folder: Path,
    family: str = "llama",
    heads: int = 8,
    kv_heads: int | None = None,
    seed: int = 0,
    shards: str = "10GB",
    **more,
):
    """Save a random model with weights large enough that heads matter."""
    from transformers import AutoConfig, AutoModelForCausalLM

    more = {"head_dim": 16, "bos_token_id": 0, "eos_token_id": 1, **SIZES, **more}
    config = AutoConfig.for_model(family, num_attention_heads=heads, num_key_value_heads=kv_heads or heads, **more)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif "bias" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder, max_shard_size=shards)
    return folder


def edit_weights(source: Path, target: Path, edit) -> Path:
    """A copy of a single-file model with its tensors changed in place by `edit(tensors)`."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    tensors = load_file(target / "model.safetensors")
    edit(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def add_tokenizer(folder: Path) -> Path:
    """That of the model in the box, for a model with a vocabulary of 4,096."""
    for file in (DATA / "demo").glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    return folder


def logits(folder: Path, tokens: torch.Tensor, **options) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True, **options).eval()
    with torch.inference_mode():
        return model(tokens).logits
