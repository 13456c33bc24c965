"""Export format `hf`: a folder that transformers loads, of class stock, padded or ragged."""

import shutil
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.checkpoint.shards import write_shards
from grouper.checkpoint.sources import is_own_file
from grouper.export.classes import CLASSES, class_for, class_named
from grouper.export.format import ExportOptions, Format, Job, Report, SelfTest, check_same_model
from grouper.export.hf.as_phi import phi_config
from grouper.export.hf.code_names import copy_without_code, without_code
from grouper.export.hf.engines import engines_for
from grouper.export.hf.readers import readable_by_all
from grouper.export.hf.tensors import exported_tensors
from grouper.export.hf.tokenizer import name_tokenizer_class
from grouper.export.self_test import run_self_test
from grouper.families.architecture import Architecture
from grouper.layout import HeadLayout
from grouper.model.auto import auto_class
from grouper.outputs import write_json
from grouper.progress import Progress

COMPANIONS = (  # files copied with the weights; never code
    "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "*.model", "*.spm", "chat_template*", "*processor_config.json", "additional_chat_templates", "LICENSE*",
    "normalizer.json", "modules.json", "config_sentence_transformers.json", "sentence_*_config.json", "[0-9]_*",
)  # fmt: skip
PYTHON = """```python
from transformers import {auto}

{note}model = {auto}.from_pretrained("{place}"{remote})
```
"""
ASKS = "# Give trust_remote_code=True to AutoTokenizer as well: transformers 5 asks in a terminal otherwise.\n"
VLLM = """```sh
vllm serve "{place}"{trust}
```
"""


@dataclass(frozen=True)
class HuggingFace(Format):
    name: str = "hf"
    library = "transformers"

    def check(self, checkpoint: Checkpoint, layout: HeadLayout, options: ExportOptions) -> None:
        check_same_model(checkpoint, layout)
        class_for(checkpoint, Architecture.of(checkpoint.config), layout, options.max_padding, options.tp)

    def write(self, job: Job, folder: Path, facts: dict, progress: Progress) -> tuple[str, str | None]:
        a, checkpoint = job.architecture, job.checkpoint
        export_class, note = class_for(checkpoint, a, job.layout, job.options.max_padding, job.options.tp)
        total, names = len(checkpoint.tensors), set()
        tensors = exported_tensors(job, export_class)
        with closing(write_shards(folder, tensors, job.options.shard_bytes, job.compared, job.checksums)) as written:
            for name in written:
                names.add(name)
                progress(min(len(names), total), total, "writing tensors")
        original = without_code(phi_config(checkpoint.config, a) if a.as_phi else checkpoint.config)
        config = export_class.config(original, a, job.layout, names)
        facts = {**facts, "deploy": export_class.name}
        write_json(folder / "config.json", {**readable_by_all(config, checkpoint.dtype), "grouper": facts})
        export_class.add_files(folder, a)
        copy_companions(checkpoint.folder, folder)
        if config["model_type"] != checkpoint.config["model_type"]:
            name_tokenizer_class(checkpoint.folder, folder)
        return export_class.name, note

    def verify(self, job: Job, folder: Path, export_class: str) -> SelfTest:
        return run_self_test(job, folder, class_named(export_class, job.options.tp))

    def weight_bytes(self, folder: Path) -> int:
        return Checkpoint.open(folder).nbytes

    def engines(self, architecture: Architecture, export_class: str) -> list[str]:
        return engines_for(architecture, export_class)

    def loader(self, config: dict) -> str:
        return auto_class(config)

    def how_to_load(self, report: Report, place: str) -> tuple[str, str]:
        own_code = CLASSES[report.export_class].own_code
        remote = ", trust_remote_code=True" if own_code else ""
        blocks = [PYTHON.format(auto=report.loader, place=place, remote=remote, note=ASKS if own_code else "")]
        if any(engine.startswith("vLLM") for engine in report.engines):
            blocks.append(VLLM.format(place=place, trust=" --trust-remote-code" if own_code else ""))
        return f'{report.loader}.from_pretrained("{place}"{remote})', "\n".join(blocks)


def copy_companions(original: Path, folder: Path) -> None:
    """Copy the tokenizer, templates, licence and other files of the model except code."""
    for pattern in COMPANIONS:
        for file in sorted(original.glob(pattern)):
            if file.is_dir() and not file.is_symlink():
                ignore = partial(_not_ours, original)
                shutil.copytree(file, folder / file.name, ignore=ignore, copy_function=copy_without_code)
            elif file.suffix != ".py" and is_own_file(file, original):
                copy_without_code(file, folder / file.name)


def _not_ours(original: Path, inside: str, names: list[str]) -> set[str]:
    """Names in a folder that are not copied: code, and files that are not regular files of the model."""
    paths = {name: Path(inside) / name for name in names}
    plain = {n for n, p in paths.items() if (p.is_dir() and not p.is_symlink()) or is_own_file(p, original)}
    return {name for name in names if name not in plain or name.endswith(".py")}
