"""WGQA, which was published with T5 models: learned weighted sums against means and spectral merges, on a T5 that
restores vowels.

    python bench/t5.py --json t5.json     # one GPU, some minutes

A T5 of 4 + 4 layers of 8 heads is trained to write sentences of the addresses of 1977-2016, character by character,
from the same sentences without their vowels. The decoder's attentions, its own and the one across to the encoder, are
converted to a half and to a quarter of their KV heads, and every conversion is trained for the same number of steps.
Nats per character (lower is better) are on sentences of addresses since 2017.
"""

import argparse
import re
from pathlib import Path

import torch
from retraining import DEVICE, Conversion, Task, main
from torch import Tensor, nn

from grouper.calibration.source import DEMO_TEXTS, TextSource
from grouper.running.batch import NOT_ASKED, padded

CONVERSIONS = (
    Conversion("GQA (mean)", "neighbour"), Conversion("WGQA", "neighbour", training="wgqa"),
    Conversion("COLWGQA", "neighbour", training="wgqa-column"), Conversion("ROWWGQA", "neighbour", training="wgqa-row"),
    Conversion("spectral, neighbours", "neighbour", "spectral", "distill"),
    Conversion("spectral", "qcqa-ec", "spectral", "distill"),
    Conversion("spectral, refined", "qcqa-ec", "spectral", "distill", refined=True),
)  # fmt: skip
SPECIAL, LONGEST = ["<pad>", "</s>", "<unk>"], 64
PAIRS = 1024  # pairs for calibration
TOKENS = 100 * PAIRS  # more than the pairs have


def sentences(path: Path) -> list[str]:
    """Lower-case stretches of at most 64 characters, cut between words."""
    pieces, line = [], ""
    for word in re.sub(r"[^a-z ,.]+", " ", path.read_text().lower()).split():
        if len(line) + len(word) >= LONGEST:
            pieces.append(line.strip())
            line = ""
        line += f" {word}"
    return pieces


def without_vowels(text: str) -> str:
    return re.sub("[aeiou]", "", text)


class Vowels(Task):
    """Restoring vowels; scores are nats per character, lower is better."""

    conversions, batch, auto, tokens = CONVERSIONS, 128, "AutoModelForSeq2SeqLM", TOKENS

    def __init__(self, tested: int):
        self.read, test = sentences(DEMO_TEXTS["calibration"]), sentences(DEMO_TEXTS["evaluation"])[:tested]
        characters = sorted(set("".join(self.read)) | set("".join(test)))
        self.ids = {c: i for i, c in enumerate([*SPECIAL, *characters])}
        self.sources, self.labels = self.encoded(self.read)
        self.examples = len(self.read)
        self.test = self.encoded(test)

    def encoded(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids [n, tokens] of the input, and of the target."""
        rows = lambda several: [[self.ids[c] for c in text] + [1] for text in several]  # noqa: E731
        sources, labels = padded(rows(map(without_vowels, texts)), 0), padded(rows(texts), NOT_ASKED)
        return sources.to(DEVICE), labels.to(DEVICE)

    def loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        rows = rows.to(DEVICE)
        return self.of(model, self.sources[rows], self.labels[rows])

    def of(self, model: nn.Module, sources: Tensor, labels: Tensor) -> Tensor:
        return model(input_ids=sources, attention_mask=(sources > 0).long(), labels=labels, use_cache=False).loss

    @torch.inference_mode()
    def score(self, model: nn.Module) -> float:
        total = count = 0.0
        for part in range(0, len(self.test[0]), 500):
            sources, labels = (t[part : part + 500] for t in self.test)
            asked = int((labels != NOT_ASKED).sum())
            total, count = total + asked * self.of(model, sources, labels).item(), count + asked
        return total / count

    def new_model(self) -> nn.Module:
        from transformers import T5Config, T5ForConditionalGeneration

        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=len(self.ids), d_model=256, d_kv=32, d_ff=768, num_layers=4, num_heads=8, dropout_rate=0.1,
                decoder_start_token_id=0, initializer_factor=1.0,
            )
        )  # fmt: skip

    def save(self, model: nn.Module, folder: Path) -> None:
        """Save the model, with a tokenizer that reads characters."""
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        tokenizer = Tokenizer(models.WordLevel(self.ids, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        )
        fast.save_pretrained(folder)
        model.save_pretrained(folder)

    def source(self, folder: Path, seed: int) -> TextSource:
        rows = torch.randperm(len(self.read), generator=torch.Generator().manual_seed(seed))[:PAIRS]
        texts = [self.read[row] for row in rows]
        (folder / "pairs.tsv").write_text("".join(f"{without_vowels(text)}\t{text}\n" for text in texts))
        return TextSource(str(folder / "pairs.tsv"))


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--sentences", type=int, default=2000, help="of the test")
    main(__doc__, lambda args: Vowels(args.sentences), options, steps=4000)
