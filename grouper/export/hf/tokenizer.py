"""The tokenizer of an exported folder whose model has another type than the original."""

from pathlib import Path

from grouper.errors import GrouperError
from grouper.model.loading import load
from grouper.outputs import write_json
from grouper.parsing import read_object


def name_tokenizer_class(original: Path, folder: Path) -> None:
    """Write down the tokenizer's class where only the model's type told it: the exported model has another type."""
    path = folder / "tokenizer_config.json"
    facts = read_object(path, f"{path.name} of {original}") if path.is_file() else {}
    kept = ("tokenizer.json", "vocab.json", "tokenizer.model")
    if facts.get("tokenizer_class") or not any((folder / f).is_file() for f in kept):
        return
    try:
        name = type(load("AutoTokenizer", original)).__name__
    except (
        ValueError,
        OSError,
        KeyError,
        ImportError,
        GrouperError,
    ):  # none that it loads: nothing to keep
        return
    generic = "PreTrainedTokenizerFast"  # what transformers 4 calls transformers 5's TokenizersBackend
    write_json(path, {**facts, "tokenizer_class": generic if name == "TokenizersBackend" else name})
