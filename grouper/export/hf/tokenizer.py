"""Tokenizer class of an exported folder whose model type differs from the original's."""

from pathlib import Path

from grouper.errors import GrouperError
from grouper.model.loading import load
from grouper.outputs import write_json
from grouper.parsing import read_object


def name_tokenizer_class(original: Path, folder: Path) -> None:
    """Record the tokenizer's class if only the model type implied it, since the exported model has another type."""
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
    ):  # transformers loads none, so there is none to keep
        return
    generic = "PreTrainedTokenizerFast"  # name in transformers 4 of transformers 5's TokenizersBackend
    write_json(path, {**facts, "tokenizer_class": generic if name == "TokenizersBackend" else name})
