"""Comparison of the tensors that transformers expects with those in the files, decided by transformers itself.

The model's class is built without weights, and is given names, types and shapes from the headers in place of tensors.
Its own loading code then renames, stacks and ties them, and reports which are missing, misshapen or left over. No
weight is read.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grouper.checkpoint.checkpoint import Checkpoint, decoder_prefix
from grouper.checkpoint.header_check import check_tensors, unread_files
from grouper.errors import GrouperError, as_one_line
from grouper.families.architecture import Architecture
from grouper.families.configuration import check_complete, configured, decoder_config
from grouper.model.auto import auto_class, check_transformers
from grouper.model.loading import load, refusing_code

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LOG = logging.getLogger("grouper")
# Many encoders are published without a pooler. Neither attention nor their answers depend on it.
NOT_NEEDED = ("pooler.",)
CURES = ({"attention_bias": True}, {"qkv_bias": True}, {"bias": True}, {"use_qkv_bias": True}, {"use_bias": True})


@dataclass(frozen=True)
class Loading:
    """Result of loading, as transformers reports it. missing: parameters without a tensor. misshapen: (name, shape in
    the files, shape in the class). unexpected: tensors that the class does not use."""

    missing: tuple[str, ...]
    misshapen: tuple[tuple[str, list[int], list[int]], ...]
    unexpected: tuple[str, ...]


def check_model(checkpoint: Checkpoint) -> None:
    """Check a model before any work. The attention tensors must have the shapes that config.json implies, and the
    installed transformers must have the model's class and find every tensor. Notes for the user go to the log
    `grouper`, once for each checkpoint. Raises GrouperError."""
    architecture = Architecture.of(checkpoint.config)
    check_complete(decoder_config(checkpoint.config))
    check_tensors(checkpoint, architecture)
    check_transformers(architecture.family)
    if not checkpoint.judged:
        for note in check_loadable(checkpoint):
            LOG.warning(note)
        checkpoint.judged = True


def check_loadable(checkpoint: Checkpoint) -> list[str]:
    """Raise GrouperError if transformers would initialise or drop weights of this model: for missing and misshapen
    tensors, and for attention tensors that its class does not read. Returns notes for the user: other tensors that
    transformers ignores, and weight files that it does not read."""
    loading = loading_of(checkpoint)
    _check_whole(checkpoint, loading)
    _check_attention(checkpoint, loading)
    _check_heads(checkpoint)
    notes = []
    if loading.unexpected:
        unused = _first(loading.unexpected)
        notes.append(f"{checkpoint.name}: transformers does not use {unused}; nor does Grouper")
    return notes + unread_files(checkpoint)


def check_exported(folder: Path, original: Checkpoint) -> int:
    """Raise GrouperError if transformers does not find every tensor that an exported folder should have, or leaves over
    other tensors than in the original. Returns the number of tensors that it loads."""
    exported = Checkpoint.open(folder)
    loading = loading_of(exported, own_code="auto_map" in exported.config)
    _check_whole(exported, loading)
    known = {_last(name) for name in loading_of(original).unexpected} if loading.unexpected else set()
    strange = [name for name in loading.unexpected if _last(name) not in known]
    if strange:
        raise GrouperError(f"{folder} has {len(strange)} tensors that its class does not read, among them {strange[0]}")
    return len(exported.tensors) - len(loading.unexpected)


def _last(name: str) -> str:
    """Part of a name that stays the same when layers get another prefix."""
    return name.rpartition(".layers.")[2] or name


def loading_of(checkpoint: Checkpoint, own_code: bool = False, config: dict | None = None) -> Loading:
    """Loading report of transformers on a checkpoint's headers. own_code: whether the folder's modelling file is ours.
    config: used instead of config.json, to try the effect of another field."""
    import torch

    with quiet(), as_one_line(f"transformers cannot load {checkpoint.name}"):
        empty = without_weights(checkpoint, own_code, config)
        tied = getattr(empty, "all_tied_weights_keys", {})  # stored or not; before 5.24 values are compared
        tensors = {
            name: torch.empty(info.shape, dtype=info.torch_dtype, device="meta")
            for name, info in checkpoint.tensors.items()
            if tied.get(name) not in checkpoint.tensors
        }
        model_class: Any = type(empty)  # its types do not show that it can return a pair
        found = model_class.from_pretrained(
            None, config=empty.config, state_dict=tensors, output_loading_info=True, ignore_mismatched_sizes=True,
            device_map={"": "meta"}, dtype=torch.float32, trust_remote_code=False,
        )[1]  # fmt: skip
    needed = [n for n in sorted(found["missing_keys"]) if not any(part in n for part in NOT_NEEDED)]
    misshapen = [(n, list(has), list(wants)) for n, has, wants in sorted(found["mismatched_keys"])]
    if found.get("error_msgs"):
        raise GrouperError(f"transformers cannot load {checkpoint.name} ({' '.join(found['error_msgs'][0].split())})")
    return Loading(tuple(needed), tuple(misshapen), tuple(sorted(found["unexpected_keys"])))


def without_weights(
    checkpoint: Checkpoint, own_code: bool = False, config: dict | None = None, dtype: "torch.dtype | None" = None
) -> "PreTrainedModel":
    """Model of a checkpoint's class, with parameters on the device `meta` and real buffers."""
    import torch
    import transformers
    from accelerate import init_empty_weights

    config = checkpoint.config if config is None else config
    if own_code:  # our own modelling file, written or checked by us
        auto = auto_of_export(config)
        described = load("AutoConfig", checkpoint.folder, own_code=True)
    else:
        auto, described = auto_class(config), configured(config)
    with refusing_code(checkpoint.name), init_empty_weights(include_buffers=False):
        auto_model, numbers = getattr(transformers, auto), dtype or torch.float32
        return auto_model.from_config(described, dtype=numbers, trust_remote_code=own_code).eval()


def auto_of_export(config: dict) -> str:
    """Auto class that loads an export with a modelling file of ours."""
    saved = config["architectures"][0]
    return next(auto for auto, loaded in config["auto_map"].items() if loaded.endswith(f".{saved}"))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the loading report and progress bar of transformers."""
    from transformers.utils import logging as told

    before, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity(logging.ERROR)
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(before)
        if bars:
            told.enable_progress_bar()


def _check_whole(checkpoint: Checkpoint, loading: Loading) -> None:
    if loading.misshapen:
        name, has, wants = loading.misshapen[0]
        more = _more(len(loading.misshapen) - 1, "misshapen")
        raise GrouperError(f"{name} of {checkpoint.name} has shape {has}, where config.json implies {wants}{more}")
    if loading.missing:
        cure = _renamed(loading) or "download or save the model again"
        more = _more(len(loading.missing) - 1, "missing")
        raise GrouperError(f"{checkpoint.name} has no tensor {loading.missing[0]}, which its class needs{more}: {cure}")


def _more(count: int, what: str) -> str:
    return f" (and {_others(count)} {'is' if count == 1 else 'are'} {what})" if count else ""


def _first(names: Sequence[str]) -> str:
    """First name, and the number of others."""
    return names[0] + (f" and {_others(len(names) - 1)}" if len(names) > 1 else "")


def _others(count: int) -> str:
    return f"{count} other{'' if count == 1 else 's'}"


def _renamed(loading: Loading) -> str | None:
    """Advice if all tensors have the right names behind a prefix of torch's own wrappers; else None."""
    for prefix, wrapper in (("_orig_mod.", "torch.compile"), ("module.", "DataParallel")):
        if loading.unexpected and all(name.startswith(prefix) for name in loading.unexpected):
            return f"its names begin with {prefix!r}, as {wrapper} leaves them: save the model that was wrapped"
    return None


def _check_attention(checkpoint: Checkpoint, loading: Loading) -> None:
    """Refuse attention tensors that the class does not read, since they would be merged and then be lost."""
    a, ours = Architecture.of(checkpoint.config), []
    for layer in range(a.layers):
        ours += [a.prefix(checkpoint, layer) + name for name in sorted(a.attention_tensors(layer))]
    unread = [name for name in ours if name in set(loading.unexpected)]
    if not unread:
        return
    raise GrouperError(
        f"{checkpoint.name} has {_first(unread)}, which its class does not read with this config.json: "
        f"{_cure(checkpoint, unread)}"
    )


def _check_heads(checkpoint: Checkpoint) -> None:
    """Refuse a model of a proved class whose attentions count their heads otherwise than its small model does."""
    a = Architecture.of(checkpoint.config)
    if not a.family.proved:
        return
    empty = without_weights(checkpoint)
    first = a.family_of(0).in_class.layer.format(layer=0)
    prefix = decoder_prefix((n for n, _ in empty.named_parameters()), first)
    counts = {"head_dim": a.head_dim, "attention_head_size": a.head_dim, "num_heads": a.query_heads,
              "num_attention_heads": a.query_heads, "num_key_value_heads": a.kv_heads,
              "num_key_value_groups": a.queries_per_kv_head}  # fmt: skip
    for site in a.sites:
        family = site.family.in_class
        path = prefix + family.layer.format(layer=site.layer) + family.attention
        for name, module in empty.get_submodule(path.rstrip(".")).named_modules():
            told = {n: getattr(module, n) for n in counts if isinstance(getattr(module, n, None), int)}
            if wrong := [n for n, count in told.items() if count != counts[n]]:
                has = f"{wrong[0]} {told[wrong[0]]}, expected {counts[wrong[0]]}"
                raise GrouperError(f"{site.name} of {checkpoint.name} has {has} ({path}.{name}): not supported")


def _cure(checkpoint: Checkpoint, unread: list[str]) -> str:
    """Advice: the field of config.json under which transformers reads these tensors, found by trying."""
    where = "text_config" if isinstance(checkpoint.config.get("text_config"), dict) else None
    for change in CURES:
        config = checkpoint.config
        (config[where] if where else config).update(change)
        try:
            loading = loading_of(checkpoint, config=config)
        except GrouperError:
            continue
        if set(unread) & set(loading.unexpected):
            continue
        field, value = next(iter(change.items()))
        then = f"set {field}: {json.dumps(value)} in config.json"
        if loading.missing:
            then += f", and save zeros as {_first(loading.missing)}, which that asks for, too"
        return then
    return "take the configuration that these weights were saved with"
