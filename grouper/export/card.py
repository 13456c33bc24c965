"""The README.md of an exported model."""

import math
import re
from pathlib import Path

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.checkpoint.sources import is_own_file
from grouper.errors import GrouperError
from grouper.export.format import Report
from grouper.families.architecture import Architecture
from grouper.layout import HeadLayout
from grouper.names import fenced, in_code, in_markdown, printable, without_controls
from grouper.parsing import yaml_value

KEPT = ("license", "license_name", "license_link", "language", "pipeline_tag")  # from the base model's front matter
TAGS = ("grouped-query-attention", "kv-cache", "kv-grouper")
LARGEST = 2**20  # largest card of a base model, in bytes


def model_card(
    checkpoint: Checkpoint, layout: HeadLayout, facts: dict, report: Report, library: str, loading: str
) -> str:
    """Model card in Markdown: what was done, its savings and costs, how to load and reproduce the model, and the base
    model's own card below.

    Licence, languages and pipeline are the base model's. library: the Hub's name of the library that loads the model.
    loading: instructions for loading it.
    """
    own, text = _card_of(checkpoint.folder)
    name = in_markdown(facts.get("base_model", checkpoint.title))
    counts = "/".join(sorted(set(layout.kv_heads), key=lambda k: -float(k.split("/")[0])))
    a = Architecture.of(checkpoint.config)
    names = [a.name_of(i).removeprefix("layer ") for i in range(len(layout.layers))]
    rows = (
        f"| {names[i]} | {layer.kv_heads} | {', '.join(map(str, layer.k.sizes))} |"
        for i, layer in enumerate(layout.layers)
    )
    on_the_hub = name == facts.get("base_model", checkpoint.title) and name.count("/") == 1
    head = {**({"base_model": name} if on_the_hub else {}), **own, "library_name": library, "tags": list(TAGS)}
    lines = [
        "---", *_yaml(head), "---", "", f"# {name}, regrouped", "",
        f"{name} with {counts} KV heads a layer instead of {layout.original_kv_heads}: {_cache(layout, report)}"
        f"{report.weight_bytes[1]:,} bytes of weights instead of {report.weight_bytes[0]:,}.",
        f"Heads were grouped by {in_code(facts.get('method', 'hand'))} and merged by {in_code(facts['merge'])}. "
        f"Runs in {', '.join(report.engines)}.", *_dequantised(checkpoint),
        *_padding(report), "", loading, *_measured(facts), *_refined(facts), *_uptrained(facts),
        "| layer | KV heads | query heads per KV head |", "| --- | --- | --- |", *rows, "", *_commands(facts),
        "Made with Grouper (`pip install kv-grouper`); `grouper.json` holds which head reads which, merged from which.",
    ]  # fmt: skip
    if text:
        lines += ["", f"# The card of {name}", "", text]
    return "\n".join(lines) + "\n"


def _cache(layout: HeadLayout, report: Report) -> str:
    """Sentence on the KV cache that is saved; empty if the model has no cache."""
    (before, after), (of_source, left) = report.kv_bytes_per_token, report.kv_bytes_per_source_token
    if not layout.is_cached:
        return ""
    source = f" and {left:,} per token of the source instead of {of_source:,}" if of_source else ""
    what = f"{after:,} bytes of KV cache per token in bfloat16 instead of {before:,}{source}"
    ratio = layout.kv_ratio if report.tp == 1 else after / before  # there may be zero KV heads
    return f"{what} ({ratio:.1%}), "


def _padding(report: Report) -> list[str]:
    """Sentence on the cost of zero heads, if there are any."""
    if not report.padding_bytes:
        return []
    share = report.padding_bytes / report.weight_bytes[1]
    split = f", so that engines can split the heads over {report.tp} GPUs" if report.tp > 1 else ""
    return [f"{report.padding_bytes:,} bytes of the weights ({share:.1%}) are zero heads{split}."]


def _dequantised(checkpoint: Checkpoint) -> list[str]:
    method = checkpoint.dequantised_from
    return [f"The original is quantised ({in_code(method)}); weights are dequantised to bfloat16."] if method else []


def _measured(facts: dict) -> list[str]:
    """Losses and task scores before and after, if the run was evaluated."""
    measured = facts.get("measured")
    if not measured:
        return []
    rows = [f"| {in_markdown(what)} | {_number(old)} | {_number(new)} |" for what, (old, new) in measured.items()]
    return ["| measured | original | this model |", "| --- | --- | --- |", *rows, ""]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _refined(facts: dict) -> list[str]:
    refined = facts.get("refined")
    if not refined:
        return []
    how = f"(scope {refined['scope']}) on {refined['tokens']:,} tokens, {refined['steps']} steps each"
    return [f"Refined layer by layer {how}.", ""]


def _uptrained(facts: dict) -> list[str]:
    done = facts.get("uptrained")
    if not done:
        return []
    teacher = f" from {in_markdown(done['teacher'])}" if done.get("teacher") else ""
    how = f"by {in_code(done['method'])}{teacher} on {done['tokens']:,} tokens, {done['steps']} steps"
    return [f"Then trained {how}; `uptraining.jsonl` holds what was measured on the way.", ""]


def _commands(facts: dict) -> list[str]:
    commands = dict.fromkeys(facts[key] for key in ("search", "export", "uptrain") if facts.get(key))
    return ["To make it again:", "", fenced("\n".join(map(printable, commands)), "sh"), ""] if commands else []


def _card_of(folder: Path) -> tuple[dict[str, str | list[str]], str]:
    """Front matter fields that remain valid (licence, language, pipeline), and text, of the base model's card. Fields
    other than words or lists of words are dropped. A card that is not a regular file of the model is ignored."""
    path = folder / "README.md"
    if not path.is_file() or not is_own_file(path, folder) or path.stat().st_size > LARGEST:
        return {}, ""
    text = without_controls(path.read_text(encoding="utf-8", errors="replace"))
    found = re.match(r"---\n(.*?)\n---\n?(.*)", text, re.DOTALL)
    if not found:
        return {}, text.strip()
    try:
        fields = yaml_value(found[1], str(path), "BaseLoader")  # YAML would read the language "no" as false
    except GrouperError:
        fields = {}
    kept = {name: fields[name] for name in fields if name in KEPT} if isinstance(fields, dict) else {}
    return {name: value for name, value in kept.items() if _are_words(value)}, found[2].strip()


def _are_words(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(word, str) for word in value))


def _yaml(fields: dict) -> list[str]:
    import yaml

    return yaml.safe_dump(fields, sort_keys=False, width=math.inf).splitlines()
