"""Refined layers on disk, one file each, so that a killed refinement goes on with the next one."""

from dataclasses import replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from grouper.attention import Attention, MergedLayer
from grouper.outputs import write_file

WEIGHTS = ("q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias", "q_norm", "k_norm")


def save_layer(path: Path, done: MergedLayer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"attention.{n}": getattr(done.attention, n) for n in WEIGHTS if getattr(done.attention, n) is not None}
    tensors |= {f"others.{n}": t for n, t in done.others.items()}
    facts = {"before": repr(done.before), "after": repr(done.after)}
    write_file(path, lambda beside: save_file({n: t.contiguous() for n, t in tensors.items()}, beside, metadata=facts))


def load_layer(path: Path, like: Attention) -> MergedLayer:
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    attention = replace(
        like, **{n.removeprefix("attention."): t for n, t in tensors.items() if n.startswith("attention.")}
    )
    others = {n.removeprefix("others."): t for n, t in tensors.items() if n.startswith("others.")}
    return MergedLayer(attention, others, float(facts["before"]), float(facts["after"]))
