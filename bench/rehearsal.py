"""All commands on a random model of a real shape, as a user types them: seconds and memory of each.

    python bench/rehearsal.py                               # 7B on one GPU: 13.5 GB of disk three times
    python bench/rehearsal.py --gpu-memory 24GB             # as on a card of 24 GB
    python bench/rehearsal.py --shape tiny --device cpu     # a minute

Steps: a search with the bundled text, a refined export, a reload by transformers alone, training of adapters, and
evaluation. Last, a training of all weights of a 7B, which must be refused on a GPU of 80 GB before any weights are
loaded.
"""

import argparse
import atexit
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from measured import report, run
from shapes import SHAPES, Shape, make

from grouper.model.memory import parsed_bytes

CARD = 80 * 10**9  # bytes
RELOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, trust_remote_code=False).to(sys.argv[2])
loss = model(input_ids=torch.arange(512, device=sys.argv[2])[None], labels=torch.arange(512, device=sys.argv[2])[None])
print(type(model).__name__, model.config.num_key_value_heads, loss.loss.item())
"""


def main() -> None:
    if sys.argv[1:2] == ["--within"]:
        return within(int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b", choices=SHAPES)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--gpu-memory", help="what the GPU is taken to have")
    parser.add_argument("--train-tokens", type=int, default=131_072)
    args = parser.parse_args()
    whole = SHAPES[args.shape]
    shape = Shape(args.layers or whole.layers, whole.hidden, whole.heads, whole.kv_heads, whole.inner, whole.vocabulary)
    most = parsed_bytes(args.gpu_memory, "--gpu-memory") if args.gpu_memory else 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, device = make(shape, folder / "model", whole=True), ("--device", args.device)
        rehearsal = Rehearsal(folder, most)
        searched, out, healed = folder / "run", folder / "out", folder / "healed"
        rehearsal.typed("search", model, "-o", searched, "--text", "demo", *device)
        rehearsal.typed("export", searched, "-o", out, "--kv-ratio", "1/2", "--text", "demo", *device)
        where = "cuda" if torch.cuda.is_available() and args.device != "cpu" else "cpu"
        rehearsal.step("reload by transformers", sys.executable, "-c", RELOAD, out, where)
        rehearsal.typed("evaluate", out, "--text", "demo", "--limit", 16, *device)
        few = ("--tokens", args.train_tokens)
        rehearsal.typed("uptrain", out, "-o", healed, "--text", "demo", "--train", "lora", *few, *device)
        rehearsal.most = min(most or CARD, CARD)
        rehearsal.typed("uptrain", out, "-o", folder / "no", "--text", "demo", *few, *device)
        report("rehearsal", rehearsal.rows)


class Rehearsal:
    """Commands run one after the other. `rows` has the time and memory of each. most: bytes of GPU memory to simulate,
    0 for all."""

    def __init__(self, folder: Path, most: int):
        self.folder, self.most, self.rows = folder, most, []

    def typed(self, *words: object) -> None:
        """Run a command of grouper."""
        self.step(str(words[0]), sys.executable, __file__, "--within", self.most, self.folder / "gpu", *words)

    def step(self, name: str, *command: object) -> None:
        told = self.folder / "gpu"
        told.unlink(missing_ok=True)
        done = run(*command)
        gpu = int(told.read_text()) if told.is_file() else 0
        last = [line for line in done.output.splitlines() if line.strip()]
        row = {"step": name, "exit": done.code, "seconds": round(done.seconds, 1), "GB": round(done.peak / 1e9, 1)}
        self.rows.append({**row, "GPU GB": round(gpu / 1e9, 1), "said": (last or [""])[-1][-160:]})
        print(json.dumps(self.rows[-1]), *last[-12:], sep="\n  ", flush=True)


def within(most: int, told: Path, words: list[str]) -> None:
    """Run a command of grouper in this process, with GPU memory limited to `most` bytes. The peak is written to the
    file `told`."""
    from cli import main as grouper

    if torch.cuda.is_available():
        atexit.register(lambda: told.write_text(str(torch.cuda.max_memory_allocated())))
        if most:
            there = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, most / there))
            torch.cuda.mem_get_info = lambda device=None: (most - torch.cuda.memory_reserved(), most)
    sys.argv = ["grouper", *words]
    sys.exit(grouper())


if __name__ == "__main__":
    began = time.perf_counter()
    main()
    if "--within" not in sys.argv:
        print(f"all of it: {time.perf_counter() - began:.0f} s")
