"""Llama-shaped checkpoints of any size, for measuring time and memory. Embedding, q, k, v, o and norms are random;
everything else is a hole in a sparse file, which reads as zeros and takes no disk space. The tokenizer is the bundled
model's.

    python bench/shapes.py 7b FOLDER          # or 1b, 13b, 70b, or demo-sized `tiny`
    python bench/shapes.py 70b FOLDER --layers 2

Heads resemble real ones: their spectra fall, and neighbours are a little alike, so that searches have something to
find. A model with zeros outside attention runs, but its output is meaningless; it serves only to measure time and
memory.
"""

import argparse
import json
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import torch

from grouper.checkpoint.checkpoint import DEMO

SHARD_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int = 32_000

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


SHAPES = {
    "tiny": Shape(4, 256, 8, 8, 512, 4096),
    "30m": Shape(8, 512, 16, 16, 1408, 4096),
    "1b": Shape(22, 2048, 32, 32, 5632),
    "7b": Shape(32, 4096, 32, 32, 11_008),
    "13b": Shape(40, 5120, 40, 40, 13_824),
    "70b": Shape(80, 8192, 64, 8, 28_672),
}


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors by name, in the order in which they are stored."""
    s, q, kv = shape, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    found = {"model.embed_tokens.weight": (s.vocabulary, s.hidden)}
    for layer in range(s.layers):
        inner = {
            "input_layernorm.weight": (s.hidden,), "self_attn.q_proj.weight": (q, s.hidden),
            "self_attn.k_proj.weight": (kv, s.hidden), "self_attn.v_proj.weight": (kv, s.hidden),
            "self_attn.o_proj.weight": (s.hidden, q), "post_attention_layernorm.weight": (s.hidden,),
            "mlp.gate_proj.weight": (s.inner, s.hidden), "mlp.up_proj.weight": (s.inner, s.hidden),
            "mlp.down_proj.weight": (s.hidden, s.inner),
        }  # fmt: skip
        found |= {f"model.layers.{layer}.{name}": of for name, of in inner.items()}
    return {**found, "model.norm.weight": (s.hidden,), "lm_head.weight": (s.vocabulary, s.hidden)}


def make(shape: Shape, folder: Path, whole: bool = False) -> Path:
    """Write the checkpoint in bfloat16. whole: make MLP, embedding and head random, too, instead of holes."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, of in tensors(shape).items():
        size = 2 * torch.Size(of).numel()
        if held and held + size > SHARD_BYTES:
            shards.append({})
            held = 0
        shards[-1][name] = of
        held += size
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, held_tensors in zip(names, shards):
        write_shard(folder / file, held_tensors, shape, whole)
    weight_map = {name: file for file, held_tensors in zip(names, shards) for name in held_tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": shape.hidden,
        "intermediate_size": shape.inner, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim, "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for file in DEMO.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    return folder


def write_shard(path: Path, held: dict[str, tuple[int, ...]], shape: Shape, whole: bool) -> None:
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, of in held.items():
        end = at + 2 * torch.Size(of).numel()
        header[name] = {"dtype": "BF16", "shape": list(of), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        begin = file.tell()
        for name, of in held.items():
            if whole or any(part in name for part in ("embed", "self_attn", "norm")):
                file.seek(begin + header[name]["data_offsets"][0])
                weights = random_weights(name, of, shape)
                file.write(weights.view(torch.uint8).numpy().data)
        file.truncate(begin + at)


def random_weights(name: str, of: tuple[int, ...], shape: Shape) -> torch.Tensor:
    """Random weights in bfloat16; equal for equal names."""
    generator = torch.Generator().manual_seed(sum(name.encode()) * 7919 + len(name))
    if len(of) == 1:
        return (0.5 + torch.rand(of, generator=generator)).to(torch.bfloat16)
    weights = torch.randn(of, generator=generator) * of[1] ** -0.5
    if "self_attn" not in name:
        return weights.to(torch.bfloat16)
    falling = torch.logspace(0.3, -0.7, shape.head_dim)
    if "o_proj" in name:
        return (weights.view(of[0], -1, shape.head_dim) * falling).reshape(of).to(torch.bfloat16)
    heads = weights.view(-1, shape.head_dim, of[1]) * falling[:, None]
    return (heads + 0.3 * heads.roll(1, 0)).reshape(of).to(torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--whole", action="store_true", help="no holes: for a model that is to be copied or trained")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    if args.layers:
        shape = Shape(args.layers, shape.hidden, shape.heads, shape.kv_heads, shape.inner, shape.vocabulary)
    make(shape, args.folder, args.whole)
    stored = sum(f.stat().st_blocks for f in args.folder.iterdir()) * 512
    apparent = sum(f.stat().st_size for f in args.folder.iterdir())
    print(f"{args.folder}: {apparent / 2**30:.1f} GiB, of which {stored / 2**30:.1f} on disk")


if __name__ == "__main__":
    main()
