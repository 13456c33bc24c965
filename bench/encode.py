"""Savings of fewer KV heads in an encoder, which keeps no cache: time of a pass, and weights.

    python bench/encode.py     # a GPU; --small for a try on a CPU

Models: BERT-base and ViT-B/16 shapes with random weights in bfloat16. Each is timed unchanged, and exported with a half
and a quarter of the KV heads, in equal groups and in groups of any size. Times are medians of 20 passes; models take
turns.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from grouper import Architecture, Checkpoint, HeadLayout, export
from grouper.model.loading import load

SHAPES = {  # the class, sizes that differ from its defaults, inputs of one pass
    "BERT-base, 64 x 512 tokens": ("BertModel", {}, {"input_ids": (64, 512)}),
    "BERT-base, 64 x 512 tokens, some filled up": (
        "BertModel",
        {},
        {"input_ids": (64, 512), "attention_mask": (64, 512)},
    ),
    "ViT-B/16, 256 pictures": ("ViTModel", {}, {"pixel_values": (256, 3, 224, 224)}),
}
SMALL = {"num_hidden_layers": 2}
GROUPS = {  # sizes of groups of 12 heads
    "half, equal": [h // 2 for h in range(12)], "half, any": [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5],
    "a quarter, equal": [h // 4 for h in range(12)], "a quarter, any": [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2],
}  # fmt: skip


def inputs(shapes: dict[str, tuple[int, ...]], device: str, small: bool) -> dict[str, torch.Tensor]:
    found = {}
    for name, (batch, *rest) in shapes.items():
        shape = (2 if small else batch, *rest)
        if name == "pixel_values":
            found[name] = torch.randn(shape, device=device, dtype=torch.bfloat16)
        elif name == "input_ids":
            found[name] = torch.randint(0, 1000, shape, device=device)
        else:  # every second sequence is half as long
            found[name] = torch.ones(shape, dtype=torch.long, device=device)
            found[name][::2, shape[1] // 2 :] = 0
    return found


@torch.inference_mode()
def timed(models: dict[str, torch.nn.Module], given: dict, passes: int) -> dict[str, float]:
    """Median milliseconds of a pass, by model; models take turns."""
    took: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(passes + 3):
        for name, model in models.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            began = time.perf_counter()
            model(**given)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= 3:
                took[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(times) for name, times in took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    print("| shape | KV heads | ms | of the original's | K and V weights |\n| --- | --- | --- | --- | --- |")
    for what, (name, sizes, shapes) in SHAPES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder, cls = Path(temporary), getattr(transformers, name)
            torch.manual_seed(0)
            original = cls(cls.config_class(**sizes, **(SMALL if args.small else {}))).to(torch.bfloat16)
            original.save_pretrained(folder / "original")
            models = {"12": original.to(device).eval()}
            a = Architecture.of(Checkpoint.open(folder / "original").config)
            for kind, labels in GROUPS.items():
                layout = HeadLayout.from_labels([labels] * a.layers, a.query_heads, a.head_dim)
                export(folder / "original", layout, folder / kind)
                model = load("AutoModel", folder / kind, own_code=True, dtype=torch.bfloat16)
                models[kind] = model.to(device).eval()
            found = timed(models, inputs(shapes, device, args.small), 2 if args.small else 20)
        for kind, ms in found.items():
            share = 1.0 if kind == "12" else (max(GROUPS[kind]) + 1) / 12
            print(f"| {what} | {kind} | {ms:.2f} | {ms / found['12']:.2f} | {share:.0%} |", flush=True)


if __name__ == "__main__":
    main()
