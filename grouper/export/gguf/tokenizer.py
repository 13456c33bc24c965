"""A Hugging Face tokenizer in GGUF's terms: tokens, their kinds, merges, and which of llama.cpp's pre-tokenizers it is.

llama.cpp splits text before merging by rules of its own, named in the file. A tokenizer whose rule is none of those
known here is refused: the model would run, on wrong tokens.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from grouper.errors import GrouperError

if TYPE_CHECKING:
    from gguf import GGUFWriter

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {LLAMA3: "llama-bpe", LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2"}
NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6  # gguf.TokenType


def pre_tokenizer(tokenizer: dict) -> str | None:
    """llama.cpp's name of a byte-level tokenizer's rule, None if it is not known here."""
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if any(step.get("add_prefix_space") for step in steps) or kinds[-1:] != ["ByteLevel"]:
        return None
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        return SPLITS.get(steps[0].get("pattern", {}).get("Regex"))
    return None


def check_tokenizer(folder: Path) -> dict:
    """tokenizer.json's content. Raises GrouperError where llama.cpp has nothing like it."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise GrouperError("a GGUF holds its tokenizer, and this model has no tokenizer.json")
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        kind = tokenizer["model"].get("type")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GrouperError(f"{path} is no tokenizer that can be read ({type(error).__name__})") from error
    if kind != "BPE":
        raise GrouperError(f"a tokenizer of type {kind} cannot be written as GGUF: only BPE is known here")
    if not tokenizer["model"].get("byte_fallback") and pre_tokenizer(tokenizer) is None:
        raise GrouperError("this tokenizer splits text by a rule that is not known here as one of llama.cpp's: no GGUF")
    return tokenizer


def add_tokenizer(writer: "GGUFWriter", folder: Path, vocab_size: int) -> None:
    """Write the tokenizer of `folder` into a gguf.GGUFWriter. vocab_size: rows of the embedding. Raises
    GrouperError."""
    from gguf import SpecialVocab

    tokenizer = check_tokenizer(folder)
    model = tokenizer["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    tokens, kinds = [f"[PAD{i}]" for i in range(vocab_size)], [UNUSED] * vocab_size
    for token, i in model["vocab"].items():
        tokens[i], kinds[i] = token, NORMAL
    rule = pre_tokenizer(tokenizer)
    if model.get("byte_fallback") or rule is None:  # SentencePiece's: llama.cpp merges by scores
        rank = {"".join(merge.split(" ")): i for i, merge in reversed(list(enumerate(merges)))}
        kinds = [BYTE if len(t) == 6 and t.startswith("<0x") else k for t, k in zip(tokens, kinds)]
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(rank.get(token, len(merges))) for token in tokens])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(rule)
        writer.add_token_merges(merges)
    for added in tokenizer.get("added_tokens", []):
        if added["id"] < vocab_size:
            tokens[added["id"]] = added["content"]
            kinds[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    SpecialVocab(folder, n_vocab=vocab_size).add_to_gguf(writer, quiet=True)
