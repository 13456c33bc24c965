"""Sources of text: files, datasets and the built-in demo texts."""

import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grouper.calibration.documents import DatasetRows, JsonLines, PlainText
from grouper.calibration.encoding import content_of, opened
from grouper.calibration.parts import Part, PartOfText, spans_of
from grouper.errors import GrouperError
from grouper.option_fields import option

DATA = Path(__file__).parent.parent / "data"
DATASETS = {  # short names of texts: dataset, and its split for each purpose
    "wikitext": ("Salesforce/wikitext:wikitext-2-raw-v1", {"calibration": "train", "evaluation": "test"}),
    "ultrachat": ("HuggingFaceH4/ultrachat_200k", {"calibration": "train_sft[:5000]", "evaluation": "test_sft[:5000]"}),
}
PAIR = ("source", "target")
LINES = ("wikitext",)  # datasets whose rows are lines of one text
DEMO_TEXTS = {"calibration": DATA / "addresses-1977-2016.txt", "evaluation": DATA / "addresses-2017-on.txt"}

Documents = PlainText | JsonLines | DatasetRows | PartOfText


@dataclass(frozen=True)
class TextSource:
    """Source of text: a file (plain text, or .jsonl with `text` or chat `messages`), a dataset NAME[:split] or
    NAME:config:split, `demo`, or a name in DATASETS; or images, a folder of images. For encoder-decoder models a file
    holds pairs: source, tab and target in each line, or .jsonl with `source` and `target`. Files are UTF-8; a
    byte-order mark is skipped, and CRLF and CR line ends are read as LF.

    purpose: "calibration" or "evaluation". It selects the text of `demo` and the split of a name in DATASETS, which
    always differ between the two. part: part of a long text that is read: "learnt" (default for calibration), "judged"
    (held out for validation of training) or "whole" (default for evaluation); pairs and images are always read whole.
    """

    text: str | None = option(
        None,
        "Text file, JSONL with `text` or chat `messages`, or demo, wikitext, ultrachat; self: the model's own answers "
        "to prompts, self:FILE to those of a file. Encoders read other files too.",
        panel="Text",
        metavar="FILE",
    )
    dataset: str | None = option(
        None,
        "Dataset as NAME[:split] or NAME:config:split (needs kv-grouper[datasets]).",
        panel="Text",
        metavar="NAME",
    )
    purpose: str = "calibration"
    images: str | None = option(
        None,
        "Folder of images, one subfolder per class (FOLDER/CLASS/*.png), for vision models.",
        panel="Text",
        metavar="FOLDER",
    )
    part: Part = None  # type: ignore[assignment]  # until __post_init__, which knows the purpose

    def __post_init__(self) -> None:
        if self.part is None:
            object.__setattr__(self, "part", "learnt" if self.purpose == "calibration" else "whole")
        if sum(map(bool, (self.text, self.dataset, self.images))) != 1:
            raise GrouperError("give text by `text=FILE` or by `dataset=NAME[:split]`, or `images=FOLDER`, one of them")

    @property
    def name(self) -> str:
        return self.text or self.dataset or f"{self.images}"

    def pairs(self) -> list[tuple[str, str]]:
        """Pairs (source, target) of every line or row. Raises GrouperError if there are none."""
        if self.text in DATASETS and is_named(self.text):
            raise GrouperError(f"{self.text} has no pairs of source and target: give a file of pairs, or `dataset`")
        wanted = (set(PAIR),)
        found = _from_dataset(self.dataset, wanted) if self.dataset else list(self._lines_of_pairs())
        pairs = [(row["source"], row["target"]) for row in found]
        if not pairs or not all(isinstance(part, str) for pair in pairs for part in pair):
            raise GrouperError(f"{self.name} has no pairs: expected `source` and `target` in every row")
        return pairs

    def _lines_of_pairs(self) -> Iterator[dict[str, Any]]:
        if is_demo(f"{self.text}"):
            raise GrouperError("the text in the box has no pairs of source and target: give a file of pairs")
        path = Path(os.path.expanduser(f"{self.text}"))
        for number, line in enumerate(content_of(path).split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = (
                    json.loads(line)
                    if path.suffix in (".jsonl", ".json")
                    else dict(zip(PAIR, line.split("\t"), strict=True))
                )
                if not isinstance(row, dict) or not set(PAIR) <= row.keys():
                    raise ValueError("one is missing")
            except ValueError as error:
                expected = "source, tab and target, or JSON with `source` and `target`"
                raise GrouperError(f"line {number} of {path} is no pair ({error}): expected {expected}") from error
            yield row

    def documents(self, tokenizer: Callable[[], Any]) -> Documents:
        """Documents of the text. tokenizer: loads the tokenizer whose template formats chats. Raises GrouperError."""
        whole = self._documents(tokenizer)
        spans = spans_of(whole.size, self.part)
        return whole if spans == [(0, whole.size)] else PartOfText(whole, spans)

    def _documents(self, tokenizer: Callable[[], Any]) -> PlainText | JsonLines | DatasetRows:
        if self.dataset:
            return DatasetRows(self.dataset, _from_dataset(self.dataset), tokenizer)
        path = self.path
        if path is not None:
            is_json = path.suffix in (".jsonl", ".json")
            return JsonLines(path, tokenizer) if is_json else PlainText(str(path), lambda: opened(path))
        name, splits = DATASETS[self.name]
        rows = _from_dataset(f"{name}:{splits[self.purpose]}")
        if self.name not in LINES:
            return DatasetRows(self.name, rows, tokenizer)
        joined = "".join(row["text"] for row in rows).encode()
        return PlainText(self.name, lambda: io.BytesIO(joined))

    @property
    def path(self) -> Path | None:
        """Path of the file; None if the source is not a file. Raises GrouperError for answers not written yet."""
        if self.text and is_own(self.text):
            raise GrouperError(
                f"{self.text} is text to learn from (search, export, regroup, uptrain): give a file here"
            )
        if self.text is None or is_named(self.text):
            return None
        return DEMO_TEXTS[self.purpose] if is_demo(self.text) else Path(os.path.expanduser(self.text))

    def chats(self) -> list[list[dict]] | None:
        """Conversations, if the text consists of chats; else None."""
        documents = self.documents(lambda: None)
        return None if isinstance(documents, PlainText) else documents.chats()


def named_sources(
    texts: list[str], dataset: str | None, purpose: str, images: str | None = None
) -> TextSource | dict[str, TextSource]:
    """Sources for texts given as NAME=FILE; a single FILE needs no name. Raises GrouperError."""
    if len(texts) <= 1 and not (texts and _name_of(texts[0])):
        return TextSource(texts[0] if texts else None, dataset, purpose, images)
    names = [_name_of(text) or "" for text in texts]
    if dataset or images or not all(names) or len(set(names)) < len(names):
        raise GrouperError("several texts need a name each: `text=wiki=a.txt` `text=code=b.txt`")
    return {name: TextSource(text.partition("=")[2], None, purpose) for name, text in zip(names, texts)}


def _name_of(text: str) -> str | None:
    """Name in a text given as NAME=FILE; None if there is none, or if the whole string is the name of a file."""
    name, equals, _ = text.partition("=")
    return name if equals and re.fullmatch(r"[\w-]+", name) and not Path(text).exists() else None


def is_demo(text: str) -> bool:
    """Whether `demo` means the built-in texts, which is the case unless a file has that name."""
    return text == "demo" and not Path("demo").is_file()


def is_own(text: str) -> bool:
    """Whether `self` or `self:FILE` means text that the model writes, which is the case unless a file has that name."""
    return text.partition(":")[0] == "self" and not Path(text).is_file()


def is_file_name(text: str) -> bool:
    return not is_demo(text) and not is_named(text) and not is_own(text)


def is_named(text: str) -> bool:
    """Whether this is a name in DATASETS, and not the name of a file."""
    return text in DATASETS and not Path(text).is_file()


def _from_dataset(name: str, wanted: tuple[set[str], ...] = ({"text"}, {"messages"})) -> Sequence[dict[str, Any]]:
    """Rows of a dataset. wanted: sets of columns, one of which must be present; other columns are not read."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise GrouperError(f"{name} needs the datasets package: pip install 'kv-grouper[datasets]'") from error
    path, *more = re.split(r":(?![^\[]*\])", name)  # colons within a slice do not split, as in NAME:train[:1%]
    if len(more) > 2:
        raise GrouperError(f"the dataset {name} has {len(more) + 1} parts: expected NAME[:split] or NAME:config:split")
    config, split = more[0] if len(more) == 2 else None, more[-1] if more else "train"
    try:
        rows = load_dataset(path, config, split=split or "train")
    except (OSError, ValueError) as error:
        what = f"cannot load the dataset {name} ({type(error).__name__})"
        raise GrouperError(f"{what}: expected NAME[:split] or NAME:config:split") from error
    if not any(columns <= set(rows.column_names) for columns in wanted):
        known = " or ".join(" and ".join(f"`{c}`" for c in sorted(columns)) for columns in wanted)
        raise GrouperError(f"{name} has no column {known}")
    return rows.select_columns([c for c in rows.column_names if any(c in columns for columns in wanted)])
