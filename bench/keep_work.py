"""Write small runs and exports of the present version, finished and half-finished, which later versions have to open
and resume.

    python bench/keep_work.py tests/data/0.1.0        # a minute; the folder must not exist

Uses only the command line. Half-finished work is killed when its first file appears. Written with Grouper 0.1.0 for
tests/test_kept_work.py. In run.json, MODELS stands for the models' folder, whose path depends on the machine.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from same_models import COMMON, character_tokenizer, write_texts

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    **COMMON, "vocab_size": 100, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 6, "max_position_embeddings": 128,
}  # fmt: skip
TEXT = ["--text", "calibration.txt", "--window", 64]
# More tokens than the text has, so that all of them are taken.
CALIBRATED = [*TEXT, "--tokens", 65536]
REFINED = [*CALIBRATED, "--refine", "--refine-tokens", 65536, "--max-padding", "900%"]
TRAINED = ["--tokens", 8192, "--step-tokens", 256, "--micro-tokens", 128, "--lr", 1e-3]
HALF = {  # the command, and the file whose appearance triggers its kill
    "half": (["export", "run", "-o", "half", "--layout", "{stock}", *REFINED], "layer-000.safetensors"),
    "healed": (["uptrain", "stock", "-o", "healed", *TEXT, *TRAINED], "state.safetensors"),
}  # fmt: skip


def make_model(folder: Path, family: str, saved: str, **more: int) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, saved)(transformers.AutoConfig.for_model(family, **SMALL, **more))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    character_tokenizer(pairs=False).save_pretrained(folder)


def start(place: Path, arguments: list[object], out: int | None = None) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    return subprocess.Popen(command, cwd=place, env=environment, stdout=out)


def run(place: Path, *arguments: object) -> None:
    if start(place, list(arguments)).wait():
        raise SystemExit(f"failed: {' '.join(map(str, arguments))}")


def measure(place: Path, folder: str, base: str) -> dict:
    """Nats per token and other measures of an exported folder, as `evaluate` prints them."""
    asked = ["evaluate", folder, "--base", base, "--text", "other.txt", "--window", 64, "--json"]
    command = start(place, asked, subprocess.PIPE)
    return json.loads(command.communicate()[0])


def run_half(place: Path, arguments: list[object], trace: str) -> None:
    """Kill the command when a file of this name appears; try again if the command finished first."""
    output = place / str(arguments[arguments.index("-o") + 1])
    kept = output.with_name(f"{output.name}.{'refine' if arguments[0] == 'export' else 'uptrain'}")
    for _ in range(20):
        command = start(place, arguments)
        while command.poll() is None and not list(kept.rglob(trace)):
            time.sleep(0.001)
        command.send_signal(signal.SIGKILL)
        command.wait()
        if kept.is_dir() and not output.exists() and not list(kept.rglob("layer-001.safetensors")):
            break
        shutil.rmtree(kept, ignore_errors=True), shutil.rmtree(output, ignore_errors=True)
    for left in (*place.glob(".*"), *kept.rglob(".*.partial")):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def layouts(table: Path) -> dict[str, int]:
    """The first layout of each class at, or near, half of the grouped heads."""
    import pandas as pd

    rows = pd.read_csv(table)
    size = "weight_ratio" if "weight_ratio" in rows else "kv_ratio"
    rows = rows[(rows[size] < 1) & rows["method"].str.startswith("qcqa")]
    rows = rows.assign(far=(rows[size] - 0.5).abs()).sort_values(["far", "layout"])
    return {name: int(some["layout"].iloc[0]) for name, some in rows.groupby("deploy")}


def write(place: Path) -> None:
    write_texts(place)
    for name, kept in (("text", "calibration"), ("other", "other")):
        text = (place / f"{name}.txt").read_text()
        (place / f"{name}.txt").unlink(), (place / f"{name}.tsv").unlink()
        (place / f"{kept}.txt").write_text(text[: text.index("\n", 4000) + 1])
    make_model(place / "model", "llama", "LlamaForCausalLM", head_dim=8)
    make_model(place / "encoder", "bert", "BertForMaskedLM")
    small = ["--population", 8, "--generations", 2, "--jobs", 1]
    for model, folder in (("model", "run"), ("encoder", "encoder-run")):
        run(place, "search", model, "-o", folder, *CALIBRATED, *small)
        chosen = layouts(place / folder / "pareto.csv")
        measured = ",".join(map(str, (0, *chosen.values())))
        run(place, "evaluate", folder, "--text", "other.txt", "--window", 64, "--layouts", measured)
        for name, layout in chosen.items():
            output = name if model == "model" else f"encoder-{name}"
            run(place, "export", folder, "-o", output, "--layout", layout, *REFINED)
        if model == "model":
            for arguments, trace in HALF.values():
                run_half(place, [str(a).format(**chosen) for a in arguments], trace)
    measured = {"encoder-ragged": "encoder", "stock": "model", "padded": "model", "ragged": "model"}
    (place / "measured.json").write_text(json.dumps({n: measure(place, n, base) for n, base in measured.items()}))
    for settings in place.glob("*/run.json"):
        settings.write_text(settings.read_text().replace(str(place), "MODELS"))


def main() -> None:
    target = Path(sys.argv[1])
    if target.exists():
        raise SystemExit(f"{target} exists")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve() / "work"
        place.mkdir()
        write(place)
        shutil.copytree(place, target)


if __name__ == "__main__":
    main()
