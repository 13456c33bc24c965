"""Where text comes from: files, datasets, the texts in the box."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from grouper.errors import GrouperError

DATA = Path(__file__).parent.parent / "data"
DATASETS = {  # texts by a short name: dataset, and its split for each purpose
    "wikitext": ("Salesforce/wikitext:wikitext-2-raw-v1", {"calibration": "train", "evaluation": "test"}),
    "ultrachat": ("HuggingFaceH4/ultrachat_200k", {"calibration": "train_sft[:5000]", "evaluation": "test_sft[:5000]"}),
}
PAIR = ("source", "target")
LINES = ("wikitext",)  # whose rows are lines of one text
DEMO_TEXTS = {"calibration": DATA / "addresses-1977-2016.txt", "evaluation": DATA / "addresses-2017-on.txt"}


@dataclass(frozen=True)
class TextSource:
    """One of: a file (plain text, or .jsonl with `text` or chat `messages`), a dataset NAME[:split] or
    NAME:config:split, `demo`, or a name in DATASETS; or images, a folder of pictures. For models that write what they
    read anew, a file has pairs: source, tab and target in each line, or .jsonl with `source` and `target`.

    purpose: "calibration" or "evaluation", which text `demo`, or which split a name in DATASETS means: never the same
    one for both.
    """

    text: str | None = None
    dataset: str | None = None
    purpose: str = "calibration"
    images: str | None = None

    def __post_init__(self) -> None:
        if sum(map(bool, (self.text, self.dataset, self.images))) != 1:
            raise GrouperError("give text by --text FILE or by --dataset NAME[:split], or --images FOLDER, one of them")

    @property
    def name(self) -> str:
        return self.text or self.dataset or f"{self.images}"

    def pairs(self) -> list[tuple[str, str]]:
        """(source, target) of every line or row. Raises GrouperError where there are no pairs."""
        if self.text in DATASETS and is_named(self.text):
            raise GrouperError(f"{self.text} has no pairs of source and target: give a file of pairs, or --dataset")
        wanted = (set(PAIR),)
        found = _from_dataset(self.dataset, wanted) if self.dataset else list(self._lines_of_pairs())
        pairs = [(row.get("source"), row.get("target")) for row in found]
        if not pairs or not all(isinstance(part, str) for pair in pairs for part in pair):
            raise GrouperError(f"{self.name} has no pairs: expected `source` and `target` in every row")
        return pairs

    def _lines_of_pairs(self) -> Iterator[dict]:
        if is_demo(f"{self.text}"):
            raise GrouperError("the text in the box has no pairs of source and target: give a file of pairs")
        path = Path(f"{self.text}").expanduser()
        for number, line in enumerate(_content_of(path).split("\n"), 1):
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

    def documents(self, tokenizer) -> list[str]:
        return [row if isinstance(row, str) else self._document(row, tokenizer) for row in self._rows()]

    def chats(self) -> list[list[dict]] | None:
        """The conversations, where there is nothing else."""
        rows = self._rows()
        chats = [row.get("messages") for row in rows if not isinstance(row, str)]
        return chats if len(chats) == len(rows) > 0 and all(isinstance(c, list) for c in chats) else None

    def _document(self, row: dict, tokenizer) -> str:
        try:
            return _document(row, tokenizer)
        except (ValueError, KeyError, TypeError) as error:
            raise GrouperError(f"{self.name} has rows with neither a `text` nor chat `messages` ({error})") from error

    def _rows(self) -> list[str | dict]:
        """Plain text whole, or the rows of JSONL or of a dataset."""
        if self.dataset:
            return _from_dataset(self.dataset)
        if is_named(self.text):
            name, splits = DATASETS[self.text]
            rows = _from_dataset(f"{name}:{splits[self.purpose]}")
            return ["".join(row["text"] for row in rows)] if self.text in LINES else rows
        path = DEMO_TEXTS[self.purpose] if is_demo(self.text) else Path(self.text).expanduser()
        content = _content_of(path)
        if path.suffix not in (".jsonl", ".json"):
            return [content]
        rows = []
        for number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                    if not isinstance(rows[-1], dict) or not ({"text", "messages"} & rows[-1].keys()):
                        raise ValueError("no such key")
                except ValueError as error:
                    raise GrouperError(
                        f"line {number} of {path} has neither a `text` nor chat `messages` ({error})"
                    ) from error
        return rows


def _content_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise GrouperError(f"cannot read the text {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise GrouperError(f"{path} is not UTF-8 text: give plain text or JSONL") from error


def named_sources(
    texts: list[str], dataset: str | None, purpose: str, images: str | None = None
) -> TextSource | dict[str, TextSource]:
    """What several --text NAME=FILE say; one FILE alone needs no name. Raises GrouperError."""
    if len(texts) <= 1 and not (texts and _name_of(texts[0])):
        return TextSource(texts[0] if texts else None, dataset, purpose, images)
    names = [_name_of(text) for text in texts]
    if dataset or images or not all(names) or len(set(names)) < len(names):
        raise GrouperError("several texts need a name each: --text wiki=a.txt --text code=b.txt")
    return {name: TextSource(text.partition("=")[2], None, purpose) for name, text in zip(names, texts)}


def _name_of(text: str) -> str | None:
    """ "wiki=a.txt" -> "wiki"; None where there is no name, or a file is called so."""
    name, equals, _ = text.partition("=")
    return name if equals and re.fullmatch(r"[\w-]+", name) and not Path(text).exists() else None


def is_demo(text: str) -> bool:
    """`demo` means the texts in the box unless there is a file of that name."""
    return text == "demo" and not Path("demo").is_file()


def is_file_name(text: str) -> bool:
    return not is_demo(text) and not is_named(text)


def is_named(text: str) -> bool:
    """Whether this is a name in DATASETS, and no file is called so."""
    return text in DATASETS and not Path(text).is_file()


def _document(row: dict, tokenizer) -> str:
    if "messages" in row:
        return tokenizer.apply_chat_template(row["messages"], tokenize=False)
    if not isinstance(row["text"], str):
        raise TypeError("`text` is not a string")
    return row["text"]


def _from_dataset(name: str, wanted: tuple[set[str], ...] = ({"text"}, {"messages"})) -> list[dict]:
    """wanted: columns, one of which sets there must be."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise GrouperError(f"{name} needs the datasets package: pip install 'kv-grouper[datasets]'") from error
    path, *more = re.split(r":(?![^\[]*\])", name)  # not at those of a slice, as in NAME:train[:1%]
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
    return list(rows)
