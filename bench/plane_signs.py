"""Gain of the signs of RoPE planes under norms on q and k, for random layers and for a small Qwen3 trained here.

    python bench/plane_signs.py [--steps 600]    # 0: random layers alone

Errors of K are those of the spectral fitness, with the weighted mean of each group's heads as they are, and with signs.
The model has 4 layers, 8 query and KV heads of 16, and learns the calibration text of the model in the box.
"""

import argparse
import tempfile
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from measured import report

from fitness.spectral import SpectralFitness
from grouper import Calibration, Checkpoint, HeadLayout, RefineOptions, TextSource
from grouper.attention import Attention
from grouper.calibration.input_moments import AssumedInputs, InputMoments
from grouper.calibration.source import DATA
from grouper.calibration.text import load_tokenizer, windows
from grouper.compress import Regrouper
from grouper.evaluation.perplexity import nll
from grouper.merging import MERGES
from grouper.merging.spectral_layer import SpectralLayer
from grouper.running.in_memory import InMemoryModel

COUNTS = (4, 2, 1)
HEADS, DIM, HIDDEN, WINDOW = 8, 16, 128, 256


def k_errors(attention: Attention, inputs: InputMoments, count: int) -> tuple[float, float]:
    """K error, relative to K's energy, of neighbours merged into `count` heads: as they are, and with signs."""
    tables = SpectralLayer(attention, inputs).tables()
    assert tables.planes is not None and tables.fixed is not None
    fitness, size = SpectralFitness(tables, attention.head_dim), attention.kv_heads // count
    index = torch.arange(attention.kv_heads).view(count, size)
    gram = tables.planes[:, index[:, :, None], index[:, None, :]].real  # [P, groups, S, S]
    fixed = tables.fixed.T[:, index]  # [P, groups, S]
    along = torch.einsum("pgi,pgij,pgj->pg", fixed, gram, fixed) / fixed.square().sum(-1)
    plain = (gram.diagonal(dim1=2, dim2=3).sum(-1) - along).sum()
    return float(plain) / fitness.k_energy, float(fitness.k_errors(index).sum()) / fitness.k_energy


def random_layers() -> None:
    """Heads that have nothing in common, and heads that are one head with random signs and noise."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(HEADS, DIM, HIDDEN, generator=g) for _ in range(3))
    o, gain = torch.randn(HIDDEN, HEADS, DIM, generator=g), torch.rand(1, DIM, generator=g).expand(HEADS, DIM) + 0.5
    planes = torch.stack([torch.arange(DIM // 2), torch.arange(DIM // 2) + DIM // 2], -1)
    signs = torch.randint(0, 2, (HEADS, DIM // 2), generator=g).repeat(1, 2) * 2.0 - 1
    inputs, rows = AssumedInputs.from_norm(None, None, HIDDEN), []
    for name, keys in {
        "random heads": k,
        "one head, random signs, noise of half its size": signs[..., None] * k[:1] + 0.5 * k,
        "one head, random signs": signs[..., None] * k[:1],
    }.items():
        layer = Attention(q, keys, v, o, planes=planes, q_norm=gain, k_norm=gain, qk_norm="head")
        for count in COUNTS:
            plain, signed = k_errors(layer, inputs, count)
            rows.append({"layer": name, "KV heads": f"{count} of {HEADS}", "as they are": plain, "with signs": signed})
    report("signs-random", rows)


def trained(folder: Path, steps: int) -> Checkpoint:
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(DATA / "demo", trust_remote_code=False)
    ids = torch.tensor(tokenizer((DATA / "addresses-1977-2016.txt").read_text())["input_ids"])
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=352, num_hidden_layers=4,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=DIM, max_position_embeddings=2 * WINDOW,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        starts = torch.randint(0, len(ids) - WINDOW, (8, 1))
        batch = ids[starts + torch.arange(WINDOW)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"  step {step}: {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Checkpoint.open(folder)


def of_model(checkpoint: Checkpoint) -> None:
    """K errors, and nats over the original before and after refinement, with and without signs."""
    text = windows(TextSource("demo", purpose="evaluation"), load_tokenizer(checkpoint), WINDOW, 48)
    regrouper = Regrouper(checkpoint, Calibration(TextSource("demo"), 32_768, WINDOW))
    model, a = InMemoryModel(checkpoint), regrouper.architecture
    original, rows = nll(model.model, text), []
    plain_signs = patch.object(SpectralLayer, "signs", lambda self, groups: self.k.new_ones(HEADS, len(self.planes)))
    for count in COUNTS:
        labels = [head * count // HEADS for head in range(HEADS)]
        layout = HeadLayout.from_labels([labels] * a.layers, HEADS, DIM)
        errors = np.mean([k_errors(a.read(checkpoint, i), regrouper.moments_of(i), count) for i in range(a.layers)], 0)
        for name, error in zip(("as they are", "with signs"), errors):
            with plain_signs if name == "as they are" else nullcontext():
                fresh = Regrouper(checkpoint, regrouper.calibration)
                over = []
                for merged in (
                    fresh.merged(layout, MERGES["spectral"]),
                    fresh.refined(layout, MERGES["spectral"], RefineOptions(tokens=16_384)),
                ):
                    with model.installed(layout, merged) as regrouped:
                        over.append(nll(regrouped, text) - original)
            found = {"K error": float(error), "nats over": over[0], "refined": over[1]}
            rows.append({"KV heads": f"{count} of {HEADS}", "merge": name, **found})
    print(f"a Qwen3 of 4 layers: {original:.4f} nats per token on {text.numel():,} tokens")
    report("signs-trained", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="of training")
    args = parser.parse_args()
    random_layers()
    if args.steps:
        with tempfile.TemporaryDirectory() as temporary:
            of_model(trained(Path(temporary) / "qwen3", args.steps))


if __name__ == "__main__":
    main()
