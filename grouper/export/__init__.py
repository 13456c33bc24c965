"""Write a regrouped model that engines run: stock or padded where the layout allows it, else with a modelling file beside the weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

from grouper.errors import GrouperError
from grouper.export.card import model_card
from grouper.export.engines import engines, loader
from grouper.export.eval_results import write_eval_results
from grouper.export.gguf import write as gguf
from grouper.export.gguf.check import check_file
from grouper.export.hf import padded, ragged
from grouper.export.hf.as_phi import phi_config
from grouper.export.hf.stock import stock_config
from grouper.export.hf.tensors import exported_tensors
from grouper.export.self_test import SelfTest, self_test
from grouper.layout import HeadLayout
from grouper.model.architecture import Architecture
from grouper.model.checkpoint import Checkpoint, write_shards
from grouper.outputs import new_folder
from grouper.regroup import Merged, Regrouper

MARKER = "grouper.json"
COMPANIONS = (  # what belongs to a model beside its weights; never code
    "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
    "chat_template*", "*processor_config.json", "additional_chat_templates", "LICENSE*",
)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """What an export wrote. deploy: its class, or "gguf". Bytes are of the KV cache per token and of the weights, before and after.

    engines: what runs it. note: why it is not of the class that the layout would allow. loader: transformers' class for it. pushed: its address on
    the Hub.
    """

    folder: str
    deploy: str
    kv_bytes_per_token: tuple[int, int]
    weight_bytes: tuple[int, int]
    engines: list[str]
    self_test: SelfTest
    note: str | None = None
    loader: str = "AutoModelForCausalLM"
    pushed: str | None = None


def export(
    checkpoint: Checkpoint | str | PathLike,
    layout: HeadLayout,
    output: str | PathLike,
    *,
    merge: str = "mean",
    merged: Merged | None = None,
    overwrite: bool = False,
    origin: dict | None = None,
    max_padding: float = padded.MAX_PADDING,
    format: str = "hf",
    dtype: str | None = None,
    shard_bytes: int = 2 * 1024**3,
    progress: Callable[[int, int], None] | None = None,
) -> Exported:
    """Merge `checkpoint`'s KV heads as `layout` says and write the model to the folder `output`.

    merge: how heads become one (a name in grouper.merging.MERGES), unless `merged` gives each layer's weights. origin: facts for
    grouper.json and the model card (method, error, command). max_padding: how much a `padded` export may add to the weights; what
    exceeds it goes out as `ragged`. format: "hf", or "gguf" for one file model.gguf of `dtype` (float32, float16 or bfloat16; the
    model's own unless given). Tensors are streamed: one shard is held in memory. Ends with a
    self-test; a failed export leaves nothing behind. Raises GrouperError.
    """
    checkpoint = (checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)).local()
    architecture = Architecture.of(checkpoint.config)
    check_exportable(checkpoint, layout, format, dtype)
    if Path(output).resolve() in (checkpoint.folder.resolve(), *checkpoint.folder.resolve().parents):
        raise GrouperError(f"{output} is or holds the model itself: choose another output folder")
    if merged is None:
        merged = Regrouper(checkpoint).merged(layout, merge)
    if format == "gguf":
        return _export_gguf(
            checkpoint, layout, Path(output), merge, merged, dtype or checkpoint.dtype, overwrite, origin
        )
    deploy, note = deploy_class(checkpoint, architecture, layout, max_padding)
    original = phi_config(checkpoint.config, architecture) if architecture.as_phi else checkpoint.config
    with new_folder(Path(output), MARKER, overwrite) as folder:
        tensors = exported_tensors(checkpoint, architecture, layout, merged, deploy)
        names = set()
        for name in write_shards(folder, tensors, shard_bytes):
            names.add(name)
            if progress:
                progress(min(len(names), len(checkpoint.tensors)), len(checkpoint.tensors))
        if deploy == "stock":
            config = stock_config(original, architecture, layout)
        elif deploy == "padded":
            config = padded.padded_config(original, architecture, layout)
        else:
            biases = (
                any(n.endswith(f".{m}.bias") for n in names) for m in (ragged.PROJECTIONS[0], ragged.PROJECTIONS[3])
            )
            config = ragged.ragged_config(original, architecture, layout, *biases)
            (folder / ragged.FILE).write_text(ragged.modelling_file(architecture), encoding="utf-8")
        facts = {"merge": merge, "deploy": deploy, **(origin or {})}
        _write_json(folder / "config.json", {**readable_by_all(config, checkpoint.dtype), "grouper": facts})
        for pattern in COMPANIONS:
            for file in sorted(checkpoint.folder.glob(pattern)):
                if file.is_dir():
                    shutil.copytree(file, folder / file.name, ignore=shutil.ignore_patterns("*.py"))
                elif file.suffix != ".py":
                    shutil.copyfile(file, folder / file.name)
        if config["model_type"] != checkpoint.config["model_type"]:
            name_tokenizer_class(checkpoint.folder, folder)
        result = self_test(checkpoint, folder, layout, merged)
        weights = sum(t.nbytes for t in Checkpoint.open(folder).tensors.values())
        exported = Exported(
            str(output),
            deploy,
            *_bytes(checkpoint, layout, weights),
            engines(architecture, deploy),
            result,
            note,
            loader(architecture),
        )
        _write_facts(folder, checkpoint, layout, facts, exported)
    return exported


def name_tokenizer_class(original: Path, folder: Path) -> None:
    """Write down the tokenizer's class where only the model's type told it: the exported model has another type."""
    from transformers import AutoTokenizer

    path = folder / "tokenizer_config.json"
    facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if facts.get("tokenizer_class") or not any(
        (folder / f).is_file() for f in ("tokenizer.json", "vocab.json", "tokenizer.model")
    ):
        return
    try:
        name = type(AutoTokenizer.from_pretrained(original)).__name__
    except (ValueError, OSError, KeyError, ImportError):  # none that transformers loads: there is nothing to keep
        return
    generic = "PreTrainedTokenizerFast"  # what transformers 4 calls transformers 5's TokenizersBackend
    _write_json(path, {**facts, "tokenizer_class": generic if name == "TokenizersBackend" else name})


def _export_gguf(
    checkpoint: Checkpoint,
    layout: HeadLayout,
    output: Path,
    merge: str,
    merged: Merged,
    dtype: str,
    overwrite: bool,
    origin: dict | None,
) -> Exported:
    """A folder with model.gguf, grouper.json and the card."""
    with new_folder(output, MARKER, overwrite) as folder:
        gguf.write_gguf(checkpoint, layout, merged, folder / gguf.FILE, dtype)
        result = check_file(folder / gguf.FILE, layout, merged, dtype)
        size = (folder / gguf.FILE).stat().st_size
        exported = Exported(
            str(output),
            "gguf",
            *_bytes(checkpoint, layout, size),
            engines(Architecture.of(checkpoint.config), "gguf"),
            result,
        )
        _write_facts(folder, checkpoint, layout, {"merge": merge, "deploy": "gguf", **(origin or {})}, exported)
    return exported


def _bytes(checkpoint: Checkpoint, layout: HeadLayout, weights: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """KV bytes per token and weight bytes, before and after."""
    alone = [range(layout.original_kv_heads)] * len(layout.layers)
    before = HeadLayout.from_labels(alone, layout.query_heads, layout.head_dim)
    return (before.kv_bytes_per_token(), layout.kv_bytes_per_token()), (
        sum(t.nbytes for t in checkpoint.tensors.values()),
        weights,
    )


def _write_facts(folder: Path, checkpoint: Checkpoint, layout: HeadLayout, facts: dict, exported: Exported) -> None:
    """grouper.json, the card, and benchmark scores where some were measured."""
    report = {k: v for k, v in asdict(exported).items() if k not in ("folder", "pushed")}
    everything = {**facts, "base_model": checkpoint.title, "layout": json.loads(layout.to_json()), "report": report}
    _write_json(folder / MARKER, everything, indent=None)
    write_eval_results(folder, facts.get("measured") or {})
    (folder / "README.md").write_text(model_card(checkpoint, layout, facts, asdict(exported)), encoding="utf-8")


def already_written(folder: Path, layout: HeadLayout, command: str | None) -> Exported | None:
    """What an export of this layout by this very command reported, if that is what the folder holds."""
    try:
        facts = json.loads((folder / MARKER).read_text())
        if command is None or facts["export"] != command or HeadLayout.from_json(json.dumps(facts["layout"])) != layout:
            return None
        report = facts["report"]
        return Exported(**{**report, "folder": str(folder), "self_test": SelfTest(**report["self_test"])})
    except (OSError, ValueError, KeyError, TypeError, GrouperError):
        return None


def check_exportable(checkpoint: Checkpoint, layout: HeadLayout, format: str = "hf", dtype: str | None = None) -> None:
    """Raise GrouperError where `export` would refuse: before anything dear is done. checkpoint: on this disk."""
    if format not in ("hf", "gguf"):
        raise GrouperError(f"unknown format {format!r}: expected hf or gguf")
    if format == "gguf":
        gguf.check(checkpoint, layout, dtype or checkpoint.dtype)
    a = Architecture.of(checkpoint.config)
    mine, theirs = (a.layers, a.query_heads, a.kv_heads, a.head_dim), (
        len(layout.layers), layout.query_heads, layout.original_kv_heads, layout.head_dim,
    )  # fmt: skip
    if mine != theirs:
        raise GrouperError(
            f"the layout is for {theirs[0]} layers of {theirs[1]} query and {theirs[2]} KV heads of {theirs[3]}, "
            f"the model has {mine[0]} of {mine[1]} and {mine[2]} of {mine[3]}: was the run made with another model?"
        )
    if layout.deploy == "none":
        raise GrouperError(
            "K and V are grouped differently: grouped attention kernels need them alike, so there is no export for this"
        )
    if format == "hf":
        deploy_class(checkpoint, a, layout, padded.MAX_PADDING)


def deploy_class(
    checkpoint: Checkpoint, architecture: Architecture, layout: HeadLayout, max_padding: float
) -> tuple[str, str | None]:
    """The class that an export is written as, and why it is not the one that the layout would allow. Raises GrouperError where none is open."""
    deploy, note = layout.deploy, None
    if deploy == "stock" and ragged.is_plain(architecture):
        note = f"no class of transformers holds {architecture.family.model_type} models with fewer KV heads"
    elif deploy == "padded":
        note = padded.refusal(checkpoint, architecture, layout, max_padding)
    if note:
        deploy, note = "ragged", f"{note}; written as ragged"
    if deploy == "ragged":
        ragged.check(architecture, layout)
    return deploy, note


def readable_by_all(config: dict, dtype: str) -> dict:
    """Fields that older readers look for: they ignore rope_parameters and would decode with the wrong base."""
    config = {k: v for k, v in config.items() if k not in ("_name_or_path", "torch_dtype", "dtype")}
    rope = config.get("rope_parameters") or {}
    if "full_attention" in rope:  # one for each kind of layer
        sliding = rope.get("sliding_attention") or {}
        if "rope_theta" in sliding:
            config.setdefault("rope_local_base_freq", sliding["rope_theta"])
        rope = rope["full_attention"]
    if "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
        if "partial_rotary_factor" in rope:
            neox = config.get("model_type", "").endswith("gpt_neox")
            config.setdefault("rotary_pct" if neox else "partial_rotary_factor", rope["partial_rotary_factor"])
            if neox:
                config.setdefault("rotary_emb_base", rope["rope_theta"])
        scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
        if scaling.get("rope_type", "default") != "default":
            config.setdefault("rope_scaling", scaling)
    if config.get("model_type", "").endswith("qwen3_moe") and "num_local_experts" in config:
        config.setdefault("num_experts", config["num_local_experts"])
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = readable_by_all(config["text_config"], dtype)
    return {**config, "dtype": dtype, "torch_dtype": dtype}


def _write_json(path: Path, data: dict, indent: int | None = 2) -> None:
    path.write_text(json.dumps(data, indent=indent, sort_keys=True) + "\n", encoding="utf-8")
