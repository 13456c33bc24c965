"""Logits of exported folders on a fixed prompt, for bench/same.py.

The models are loaded by transformers. They read the prompt in one pass, and, if there is a cache, also in two halves.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

TOKENS = 24


def loaded(folder: Path) -> torch.nn.Module:
    """The model, loaded by the Auto class if a modelling file is in the folder, else by the class that config.json
    names."""
    config = json.loads((folder / "config.json").read_text())
    architecture = config["architectures"][0]
    auto = next((a for a, c in config.get("auto_map", {}).items() if c.endswith(architecture)), None)
    load = getattr(transformers, auto or architecture)
    return load.from_pretrained(folder, dtype=torch.float32, trust_remote_code=auto is not None).eval()


@torch.inference_mode()
def logits_of(folder: Path) -> dict[str, torch.Tensor]:
    """Logits [2, tokens, vocabulary], for each way of reading the prompt."""
    model = loaded(folder)
    prompt = torch.randint(3, model.config.vocab_size, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    if model.config.is_encoder_decoder:
        call = {"input_ids": prompt.flip(1)}
        name = "decoder_input_ids"
    else:
        call, name = {}, "input_ids"
    found = {"whole": model(**call, **{name: prompt}).logits}
    if getattr(model.config, "use_cache", False) and model.can_generate():
        half = TOKENS // 2
        first = model(**call, **{name: prompt[:, :half]}, use_cache=True)
        rest = model(**call, **{name: prompt[:, half:]}, use_cache=True, past_key_values=first.past_key_values)
        found["cached"] = torch.cat([first.logits, rest.logits], 1)
    return found


def write(output: str, folders: list[str]) -> None:
    found = {f"{f}, {how}": t.contiguous() for f in folders for how, t in logits_of(Path(f)).items()}
    save_file(found, output)
