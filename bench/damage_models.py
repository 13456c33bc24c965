"""Damage for bench/faults.py to models that a proof admits, and to quantised ones."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path

from damage import Case, Commands, all_commands, config_fields

ALIKE = "ernie4_5"  # type without an entry whose tensors are called like a Llama's
ODD = [
    None,
    0,
    -1,
    3,
    10**12,
    2**70,
    1.5,
    float("nan"),
    "",
    "x",
    "\x1b[2J",
    [],
    [0, 0],
    [10**12, 1],
    [1, 1, 1],
    {},
    True,
]


def types(rng: random.Random) -> Iterator[Case]:
    """Configurations of types without an entry: damaged fields, and types whose tensors are not there."""
    from transformers import CONFIG_MAPPING

    every, fields = sorted(CONFIG_MAPPING), config_fields(rng)
    while True:
        other, (name, damaged) = rng.random() < 0.3, next(fields)
        model_type = rng.choice(every) if other else ALIKE

        def damage(folder: Path, model_type=model_type, damaged=damaged) -> None:
            path = folder / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": model_type}))
            damaged(folder)

        yield f"{model_type} {name}", damage


def quantised(rng: random.Random) -> Iterator[Case]:
    """FP8 models with damaged schemes and scales, and other methods' schemes over plain tensors."""
    methods = ["fp8", "mxfp4", "gptq", "awq", "bitsandbytes", "compressed-tensors", "hqq", None]
    places = ["quant_method", "weight_block_size", "bits", "group_size", "version", "checkpoint_format", "modules"]
    while True:
        method = "fp8" if rng.random() < 0.6 else rng.choice(methods)
        place, value, of_scale = rng.choice(places), copy.deepcopy(rng.choice(ODD)), rng.random() < 0.4
        wrong = rng.choice(["shape", "nan", "missing", "integers", "none"])

        def damage(work: Path, method=method, place=place, value=value, of_scale=of_scale, wrong=wrong) -> Commands:
            folder = work / "model"
            scheme = {"quant_method": method, "weight_block_size": [16, 16], "bits": 4, "group_size": 16}
            to_fp8(folder, wrong if of_scale else "none")
            path = folder / "config.json"
            scheme |= {} if of_scale else {place: value}
            path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": scheme}))
            return all_commands(work)[1:]  # inspect makes no copy

        yield f"{method} {wrong if of_scale else f'{place} {value!r}'[:40]}", damage


def to_fp8(folder: Path, wrong: str) -> None:
    """Turn the linear layers into FP8 with a scale for each block of 16 x 16. wrong: what is wrong with one scale."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in [n for n, tensor in tensors.items() if "proj" in n and tensor.ndim == 2]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones([-(-n // 16) for n in tensors[name].shape])
    one = "model.layers.1.self_attn.k_proj.weight_scale_inv"
    changed = {"shape": torch.ones(3, 5), "nan": tensors[one] * float("nan"), "integers": tensors[one].long()}
    if wrong == "missing":
        del tensors[one]
    tensors |= {one: changed[wrong]} if wrong in changed else {}
    save_file(tensors, path, metadata={"format": "pt"})


CLASSES = {"types": (types, 60), "quantised": (quantised, 80)}
