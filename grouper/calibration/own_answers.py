"""Text that a model writes itself (`--text self`): its answers to prompts, to calibrate and refine on.

Answers are sampled in batches, as the model's generation_config says, each batch from a seed of its own. They are kept
as JSONL, with the prompt as the model reads it, and written after each batch, so that a killed command goes on with the
same answers.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grouper.calibration.encoding import content_of
from grouper.calibration.source import DATA, TextSource, is_own
from grouper.calibration.text import load_tokenizer
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError, as_one_line
from grouper.families.architecture import Architecture
from grouper.machine import Machine
from grouper.model.auto import auto_class
from grouper.model.loadable import quiet
from grouper.model.loading import load
from grouper.model.memory import free_memory
from grouper.outputs import work_key, write_text
from grouper.progress import duration
from grouper.schema import damage_said, document, fitted, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Messages = list[dict[str, str]]
PROMPTS = DATA / "prompts.txt"
LONGEST = 1024  # most tokens of an answer
LARGEST = 2**30  # bytes of a file of answers
AT_ONCE = {"cpu": 8, "cuda": 64}  # answers of a batch
TRIED = 8  # tokens of a batch that the time is estimated from


def asks_for_own(source: TextSource) -> bool:
    """Whether the source is text that the model has yet to write."""
    return bool(source.text and is_own(source.text))


def prompts_of(source: TextSource) -> list[Messages]:
    """Prompts as messages: one per line of a text, or of JSONL with `prompt`, or with `messages` up to the last of a
    user."""
    name = str(source.text).partition(":")[2]
    path = Path(name).expanduser() if name else PROMPTS
    lines = [(number, line) for number, line in enumerate(content_of(path).split("\n"), 1) if line.strip()]
    if path.suffix in (".jsonl", ".json"):
        found = [_of_row(line, f"line {number} of {path}") for number, line in lines]
    else:
        found = [[{"role": "user", "content": line.strip()}] for _, line in lines]
    if not found:
        raise GrouperError(f"{path} has no prompts: expected one per line, or JSONL with `prompt` or `messages`")
    return found


def _of_row(line: str, where: str) -> Messages:
    try:
        row = document(line)
        if isinstance(row.get("prompt"), str):
            return [{"role": "user", "content": row["prompt"]}]
        last = max(i for i, message in enumerate(row["messages"]) if message["role"] == "user")
        return [{"role": str(m["role"]), "content": str(m["content"])} for m in row["messages"][: last + 1]]
    except (GrouperError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GrouperError(f"{where} is no prompt: expected a `prompt`, or `messages` with one of a user") from error


@dataclass(frozen=True)
class Answer:
    """Row of a file of answers. text: prompt and answer as the model reads them. tokens: of both."""

    text: str
    tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class OwnAnswers:
    """Request for answers. tokens: of prompts and answers together. device: where the model runs."""

    checkpoint: Checkpoint
    prompts: list[Messages]
    tokens: int
    seed: int
    device: str

    @classmethod
    def of(cls, source: TextSource, checkpoint: Checkpoint, tokens: int, seed: int, device: str) -> "OwnAnswers":
        """Request of a source `self` or `self:FILE`. Raises GrouperError if there are no prompts."""
        return cls(checkpoint, prompts_of(source), tokens, seed, device)

    def path(self, folder: Path) -> Path:
        """Absolute path of the answers in this folder."""
        return folder.absolute() / f"{self.key}.jsonl"

    @property
    def at_once(self) -> int:
        return AT_ONCE["cuda" if "cuda" in self.device else "cpu"]

    @property
    def key(self) -> str:
        """Name of the file: everything that decides its content, except for the device and releases."""
        asked = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()
        facts = {"tokens": self.tokens, "seed": self.seed, "at_once": self.at_once, "longest": LONGEST}
        return work_key(model=self.checkpoint.fingerprint, prompts=asked, **facts)

    def write(self, path: Path, machine: Machine) -> None:
        """Write the answers that the file lacks. The amount and the time are told first."""
        rows = _rows_in(path)
        rows = rows[: len(rows) // self.at_once * self.at_once]
        if self._written(rows) >= self.tokens:
            return
        self._check()
        writer = Writer.open(self.checkpoint, self.device, self.prompts)
        seconds = writer.seconds_per_token(self.at_once) * (self.tokens - self._written(rows)) / self.at_once
        done = f", {self._written(rows):,} of them done" if rows else ""
        machine.tell(
            f"{self.checkpoint.name} answers {len(self.prompts)} prompts in turns, {self.tokens:,} tokens{done}: "
            f"about {duration(seconds)}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        while self._written(rows) < self.tokens:
            rows += writer.batch(len(rows), self.at_once, self.seed)
            write_text(path, "".join(json.dumps(asdict(row)) + "\n" for row in rows))
            machine.progress(min(self._written(rows), self.tokens), self.tokens, "answering prompts")
        del writer
        if "cuda" in self.device:
            torch.cuda.empty_cache()  # the next model is opened by how much is free

    @staticmethod
    def _written(rows: list[Answer]) -> int:
        return sum(row.tokens for row in rows)

    def _check(self) -> None:
        """Raise GrouperError for a model that cannot write, or that does not fit into memory."""
        if Architecture.of(self.checkpoint.config).family.reads != "windows":
            raise GrouperError(f"{self.checkpoint.name} does not write text: `text=self` is for decoders")
        on_gpu = "cuda" in self.device
        needs = (2 if on_gpu else 4) * self.checkpoint.parameters
        room = torch.cuda.mem_get_info(self.device)[0] if on_gpu else free_memory()
        if needs > room / 1.2:
            raise GrouperError(
                f"{self.checkpoint.name} takes {needs / 1e9:.1f} GB to write its own text and {room / 1e9:.1f} GB are "
                "free: write answers with a serving engine, and give them as JSONL by `text=FILE`"
            )


def _rows_in(path: Path) -> list[Answer]:
    """Complete rows of a file; none if there is no file."""
    if not path.is_file():
        return []
    with damage_said(path, "delete it, and it is written again"):
        return [fitted(document(line), Answer) for line in text_of(path, LARGEST).splitlines()]


@dataclass(frozen=True)
class Writer:
    """Model in memory that answers prompts. asked: ids of each prompt, rendered by the chat template if there is
    one."""

    model: "PreTrainedModel"
    tokenizer: Any
    asked: list[list[int]]
    longest: int

    @classmethod
    def open(cls, checkpoint: Checkpoint, device: str, prompts: list[Messages], longest: int | None = None) -> "Writer":
        """Load the model. longest: most tokens of an answer (default: LONGEST)."""
        local, on_gpu, longest = checkpoint.local(), "cuda" in device, longest or LONGEST
        options: dict[str, Any] = {"device_map": {"": device}} if on_gpu else {}
        with as_one_line(f"transformers cannot load {checkpoint.name}"), quiet():
            options["dtype"] = torch.bfloat16 if on_gpu else torch.float32
            model = load(auto_class(checkpoint.config), local.folder, **options).eval()
        tokenizer = load_tokenizer(local)
        context = Architecture.of(checkpoint.config).context or 4 * longest
        asked = [rendered(tokenizer, prompt) for prompt in prompts]
        for number, ids in enumerate(asked, 1):
            if not 0 < len(ids) <= context // 2:
                raise GrouperError(f"prompt {number} has {len(ids)} tokens: expected 1 to {context // 2}, half of what "
                                   f"{checkpoint.name} reads")  # fmt: skip
        return cls(model, tokenizer, asked, min(longest, context // 2))

    def seconds_per_token(self, count: int) -> float:
        """Seconds of one decoding step of a batch, from a short trial after a warm-up."""
        asked = [self.asked[i % len(self.asked)] for i in range(count)]
        self._generated(asked, 1, seed=0)
        began = time.perf_counter()
        self._generated(asked, TRIED, seed=0)
        return (time.perf_counter() - began) / TRIED

    def batch(self, begin: int, count: int, seed: int) -> list[Answer]:
        """Rows of `count` answers, the first of which has the number `begin`. Prompts are taken in turns."""
        asked = [self.asked[i % len(self.asked)] for i in range(begin, begin + count)]
        said = self._generated(asked, self.longest, seed * 1_000_003 + begin)
        rows = []
        for prompt, answer in zip(asked, said):
            ids = prompt + answer
            text = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            rows.append(Answer(text, len(ids), len(answer)))
        return rows

    @torch.inference_mode()
    def _generated(self, asked: list[list[int]], most: int, seed: int) -> list[list[int]]:
        """Ids of sampled answers, without the tokens that end them twice or pad them. The caller's random state stays
        as it is."""
        width, filling = max(map(len, asked)), self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[filling] * (width - len(row)) + row for row in asked], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in asked], device=self.model.device)
        generate: Any = self.model.generate
        device = self.model.device
        with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            done = generate(
                input_ids=ids, attention_mask=mask, do_sample=True, max_new_tokens=most, pad_token_id=filling
            )
        ends = self._ends()
        return [until_end(row, ends, self.tokenizer.eos_token_id) for row in done[:, width:].tolist()]

    def _ends(self) -> set[int]:
        """Tokens that end an answer."""
        config: Any = self.model.generation_config
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        return {end for end in (*ends, self.tokenizer.eos_token_id) if end is not None}


def until_end(ids: list[int], ends: set[int], document_end: int | None) -> list[int]:
    """The answer up to the first token that ends it, and that token too, unless it ends documents: that one is added
    on reading.

    >>> until_end([5, 6, 2, 0, 0], {1, 2}, 1), until_end([5, 1, 0], {1, 2}, 1), until_end([5, 6], {1}, 1)
    ([5, 6, 2], [5], [5, 6])
    """
    place = next((i for i, token in enumerate(ids) if token in ends), None)
    if place is None:
        return ids
    return ids[:place] if ids[place] == document_end else ids[: place + 1]


def rendered(tokenizer: Any, messages: Messages) -> list[int]:
    """Ids of a prompt: by the chat template up to the answer's beginning, or the plain words and a line end."""
    if getattr(tokenizer, "chat_template", None) is None:
        return list(tokenizer("\n".join(message["content"] for message in messages) + "\n", verbose=False)["input_ids"])
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
