"""Cache of tokens on disk, so that a repeated command does not tokenise its text again."""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from grouper.calibration.encoding import opened
from grouper.checkpoint.sources import LARGEST, is_own_file
from grouper.errors import GrouperError
from grouper.tensor_files import load_tensors, save_tensors

MOST = 2**20  # most tokens of a text that are cached
BLOCKS, BLOCK = 64, 2**16  # parts of a file that are compared, and bytes per part: files up to 4 MiB are compared whole

OF_TOKENIZERS = (".json", ".model", ".txt", ".jinja", ".spm", ".tiktoken")


class KeptTokens:
    """Windows of tokens by key, stored as files in a folder. Nothing is written before `begin`."""

    def __init__(self, folder: Path):
        self._folder, self._begun = Path(folder), False
        self._waiting: dict[str, Tensor] = {}
        self._damaged: set[str] = set()

    def begin(self) -> None:
        """Start writing to disk. Tokens kept so far are written now, later ones immediately."""
        self._begun = True
        for key, tokens in self._waiting.items():
            self.keep(key, tokens)
        self._waiting.clear()

    def find(self, key: str) -> Tensor | None:
        """Cached ids [n, window]; None if they are not cached, or if the file is damaged or belongs to another text (it
        is then replaced)."""
        if not self._path(key).is_file():
            return None
        try:
            tokens = load_tensors(self._path(key), _Nothing, "delete it")[0]["tokens"].long()
        except (GrouperError, KeyError):
            self._damaged.add(key)
            return None
        self.keep(key, tokens)
        return tokens

    def keep(self, key: str, tokens: Tensor) -> None:
        """Cache tokens [n, window]. If the folder is not writable, nothing is cached."""
        if tokens.numel() > MOST:
            return
        if not self._begun:
            self._waiting[key] = tokens
        elif key in self._damaged or not self._path(key).is_file():
            with suppress(OSError, SafetensorError):
                self._folder.mkdir(exist_ok=True)
                save_tensors(self._path(key), {"tokens": tokens.int()}, _Nothing())

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


@dataclass(frozen=True)
class _Nothing:
    """Facts stored with the tokens: none."""


def key_of(text: Path, tokenizer: Path, *more: object) -> str:
    """Key for a text file and the tokenizer in this folder. It changes when either changes. more: settings for reading
    the text."""
    facts = [*_of_text(text), *_of_tokenizer(tokenizer), *more]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _of_text(path: Path) -> list[object]:
    found = hashlib.sha256()
    with opened(path) as file:
        facts = os.fstat(file.fileno())
        for block in range(BLOCKS):
            file.seek(max(block * BLOCK, block * (facts.st_size - BLOCK) // (BLOCKS - 1)))
            found.update(file.read(BLOCK))
    return [path.suffix, facts.st_size, facts.st_mtime_ns, found.hexdigest()]


def _of_tokenizer(folder: Path) -> list[object]:
    found = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in OF_TOKENIZERS and is_own_file(p, folder)):
        if path.stat().st_size > LARGEST:
            continue  # not a tokenizer file
        found.update(f"{path.name} {path.stat().st_size} ".encode())
        found.update(path.read_bytes())
    return [found.hexdigest(), version("transformers"), version("tokenizers")]
