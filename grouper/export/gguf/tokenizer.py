"""Conversion of a Hugging Face tokenizer to GGUF: tokens, their types, merges, and the matching llama.cpp
pre-tokenizer.

llama.cpp splits text before merging by its own rules, which the file selects by name. A tokenizer whose rule is not
known here is refused, because the model would run on wrong tokens.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from grouper.errors import GrouperError, as_one_line
from grouper.parsing import read_object, shown

if TYPE_CHECKING:
    from gguf import GGUFWriter

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {LLAMA3: "llama-bpe", LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2"}
NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6  # gguf.TokenType
LARGEST, MOST_VALUES = 2**28, 10**7  # largest size in bytes, and number of values, of tokenizer.json


@dataclass(frozen=True)
class BytePairs:
    """BPE tokenizer. vocabulary: tokens and their ids. merges: pairs written as "a b". added: id, text, and whether it
    is special. splits: llama.cpp's name of the pre-tokenizer; None if tokens fall back to bytes, as in
    SentencePiece."""

    vocabulary: dict[str, int]
    merges: list[str]
    added: list[tuple[int, str, bool]]
    splits: str | None


def pre_tokenizer(tokenizer: dict) -> str | None:
    """llama.cpp's name of a byte-level tokenizer's pre-tokenizer; None if it is not known here."""
    steps: Any = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps]) if isinstance(steps, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return None
    kinds = [step.get("type") for step in steps]
    if any(step.get("add_prefix_space") for step in steps) or kinds[-1:] != ["ByteLevel"]:
        return None
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        pattern = steps[0].get("pattern")
        rule = pattern.get("Regex") if isinstance(pattern, dict) else None
        return SPLITS.get(rule) if isinstance(rule, str) else None
    return None


def check_tokenizer(folder: Path) -> BytePairs:
    """Tokenizer in tokenizer.json. Raises GrouperError if llama.cpp has no equivalent."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise GrouperError("a GGUF holds its tokenizer, and this model has no tokenizer.json")
    tokenizer = read_object(path, str(path), LARGEST, MOST_VALUES)
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens", [])

    def wrong(field: str, value: object, expected: str) -> GrouperError:
        return GrouperError(f"{path} has {field} {shown(value)}: expected {expected}")

    if not isinstance(model, dict):
        raise wrong("model", model, "an object")
    if model.get("type") != "BPE":
        raise GrouperError(f"a tokenizer of type {shown(model.get('type'))} is not written as GGUF: only BPE is known")
    splits = None if model.get("byte_fallback") else pre_tokenizer(tokenizer)
    if splits is None and not model.get("byte_fallback"):
        raise GrouperError("this tokenizer splits text by a rule that is not known here as one of llama.cpp's: no GGUF")
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not all(map(is_id, vocabulary.values())):
        raise wrong("model.vocab", vocabulary, "an object with an id for each token")
    if not isinstance(merges, list) or not all(map(_is_merge, merges)):
        raise wrong("model.merges", merges, "a list of pairs of tokens")
    if not isinstance(added, list) or not all(map(_is_added, added)):
        raise wrong("added_tokens", added, "a list of objects with an id and a content")
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return BytePairs(vocabulary, pairs, [(a["id"], a["content"], bool(a.get("special"))) for a in added], splits)


def is_id(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**31


def _is_merge(merge: object) -> bool:
    return isinstance(merge, str) or (
        isinstance(merge, list) and len(merge) == 2 and all(isinstance(part, str) for part in merge)
    )


def _is_added(token: object) -> bool:
    return isinstance(token, dict) and is_id(token.get("id")) and isinstance(token.get("content"), str)


def add_tokenizer(writer: "GGUFWriter", folder: Path, vocab_size: int) -> None:
    """Write the tokenizer of `folder` into a gguf.GGUFWriter. vocab_size: rows of the embedding. Raises
    GrouperError."""
    tokenizer = check_tokenizer(folder)
    tokens, kinds = [f"[PAD{i}]" for i in range(vocab_size)], [UNUSED] * vocab_size
    for token, i in tokenizer.vocabulary.items():
        if i >= vocab_size:
            raise GrouperError(f"the tokenizer has token {i}, and the model knows {vocab_size}: do they go together?")
        tokens[i], kinds[i] = token, NORMAL
    if tokenizer.splits is None:  # SentencePiece's, which llama.cpp merges by scores
        rank = {"".join(merge.split(" ")): i for i, merge in reversed(list(enumerate(tokenizer.merges)))}
        kinds = [BYTE if len(t) == 6 and t.startswith("<0x") else k for t, k in zip(tokens, kinds)]
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(rank.get(token, len(tokenizer.merges))) for token in tokens])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(tokenizer.splits)
        writer.add_token_merges(tokenizer.merges)
    for i, content, special in tokenizer.added:
        if i < vocab_size:
            tokens[i], kinds[i] = content, CONTROL if special else USER_DEFINED
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    add_special_tokens(writer, folder, vocab_size)


def add_special_tokens(writer: "GGUFWriter", folder: Path, vocab_size: int) -> None:
    """Write the tokens that begin and end a text, as gguf finds them in the files of `folder`. Raises GrouperError if
    it cannot read them."""
    from gguf import SpecialVocab

    with as_one_line(f"the special tokens of {folder} cannot be written as GGUF"):
        SpecialVocab(folder, n_vocab=vocab_size).add_to_gguf(writer, quiet=True)
