"""Sentence vectors of all-MiniLM-L6-v2 (BERT, 6 layers of 12 heads) before and after regrouping: do similar sentences
still find each other?

    python bench/fetch_real_models.py && python bench/minilm.py --json minilm.json    # 2 cores, some minutes

Calibration and refinement use introductions of Wikipedia articles; measurements use the first sentences of 1,000
others. Measured are the cosine of each vector with the original's, Spearman's correlation between all pairwise
similarities and the original's, and the share of sentences whose nearest neighbour stays the same. For all three,
higher is better.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from fetch_real_models import HERE, MINILM
from retraining import Conversion, exported, searched
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import normalize

from grouper.calibration.source import TextSource

CONVERSIONS = (
    Conversion("neighbours, mean", "neighbour"), Conversion("QCQA, mean", "qcqa-ec"),
    Conversion("neighbours, spectral", "neighbour", "spectral"), Conversion("spectral", "qcqa-ac", "spectral"),
    Conversion("spectral, refined", "qcqa-ac", "spectral", refined=True),
)  # fmt: skip
SENTENCES = 1000


def sentences(path: Path) -> list[str]:
    rows = [row.partition(". ")[0].strip() for row in path.read_text(encoding="utf-8").split("\n\n")]
    rows = [row for row in rows if 40 < len(row) < 400]
    return [rows[i * len(rows) // SENTENCES] for i in range(SENTENCES)]


@torch.inference_mode()
def vectors(folder: Path, texts: list[str]) -> Tensor:
    """Sentence vectors [n, D], normalised: the mean over tokens, as described in the model's card."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer, found = AutoTokenizer.from_pretrained(folder, trust_remote_code=True), []
    for part in range(0, len(texts), 50):
        given = tokenizer(texts[part : part + 50], padding=True, truncation=True, max_length=256, return_tensors="pt")
        mask = given["attention_mask"][..., None]
        found.append((model(**given)[0] * mask).sum(1) / mask.sum(1))
    return normalize(torch.cat(found), dim=-1)


def compared(before: Tensor, after: Tensor) -> dict[str, float]:
    pairs = torch.triu_indices(len(before), len(before), offset=1)
    alike = [(v @ v.T)[pairs[0], pairs[1]].numpy() for v in (before, after)]
    nearest = [(v @ v.T).fill_diagonal_(-1).argmax(1) for v in (before, after)]
    return {
        "cosine": (before * after).sum(-1).mean().item(), "spearman": float(spearmanr(*alike).statistic),
        "neighbour": (nearest[0] == nearest[1]).float().mean().item(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_768, help="that are calibrated and refined on")
    parser.add_argument("--shares", default="0.75,0.5,0.25", help="of the K and V heads")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    texts, found = sentences(HERE / "wikipedia-evaluation.txt"), []
    source, before = TextSource(str(HERE / "wikipedia-calibration.txt")), vectors(MINILM, texts)
    print("| conversion | K and V heads | cosine | Spearman | same neighbour |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = searched(MINILM, folder / "run", CONVERSIONS, source, tokens=args.tokens, window=128)
        for share in map(float, args.shares.split(",")):
            for number, conversion in enumerate(CONVERSIONS):
                place = folder / f"{share}-{number}"
                exported(run, conversion, share, place, source, args.tokens, 0)
                row = compared(before, vectors(place, texts))
                found.append({"name": conversion.name, "share": share, **row})
                values = " | ".join(f"{row[key]:.4f}" for key in ("cosine", "spearman", "neighbour"))
                print(f"| {conversion.name} | {share:.0%} | {values} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
