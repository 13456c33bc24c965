"""WGQA was shown on T5: learned weighted sums against means and spectral merges, on a T5 that restores vowels.

    python bench/t5.py --json t5.json     # one GPU, some minutes

A T5 of 4 + 4 layers of 8 heads is trained to write sentences of the addresses of 1977-2016, character by character,
from the same sentences without their vowels. The decoder's attentions, its own and the one across to the encoder, are
converted to a half and to a quarter of their KV heads, and every conversion is trained for the same steps. Nats per
character are on sentences of addresses since 2017.
"""

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

import torch
from retraining import Conversion, descend, exported, mean_and_error, passes, searched, trained, written
from torch import Tensor, nn

from grouper.calibration.examples import NOT_ASKED, padded
from grouper.calibration.source import DEMO_TEXTS, TextSource

CONVERSIONS = (
    Conversion("GQA (mean)", "neighbour"), Conversion("WGQA", "neighbour", training="wgqa"),
    Conversion("COLWGQA", "neighbour", training="wgqa-column"), Conversion("ROWWGQA", "neighbour", training="wgqa-row"),
    Conversion("spectral, neighbours", "neighbour", "spectral", "distill"),
    Conversion("spectral", "qcqa-ec", "spectral", "distill"),
    Conversion("spectral, refined", "qcqa-ec", "spectral", "distill", refined=True),
)  # fmt: skip
SHARES = {0.5: "half", 0.25: "a quarter"}
SPECIAL, LONGEST = ["<pad>", "</s>", "<unk>"], 64
PAIRS = 1024  # that are calibrated on
TOKENS = 100 * PAIRS  # more than they have


def sentences(path: Path) -> list[str]:
    """Lower-case pieces of at most 64 characters, cut between words."""
    pieces, line = [], ""
    for word in re.sub(r"[^a-z ,.]+", " ", path.read_text().lower()).split():
        if len(line) + len(word) >= LONGEST:
            pieces.append(line.strip())
            line = ""
        line += f" {word}"
    return pieces


def without_vowels(text: str) -> str:
    return re.sub("[aeiou]", "", text)


class Task:
    def __init__(self, device: str, tested: int):
        self.device = device
        self.read, test = sentences(DEMO_TEXTS["calibration"]), sentences(DEMO_TEXTS["evaluation"])[:tested]
        characters = sorted(set("".join(self.read)) | set("".join(test)))
        self.ids = {c: i for i, c in enumerate([*SPECIAL, *characters])}
        self.sources, self.labels = self.encoded(self.read)
        self.test = self.encoded(test)

    def encoded(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """[n, tokens] of what is read, and of what is to be written."""
        rows = lambda several: [[self.ids[c] for c in text] + [1] for text in several]  # noqa: E731
        sources, labels = padded(rows(map(without_vowels, texts)), 0), padded(rows(texts), NOT_ASKED)
        return sources.to(self.device), labels.to(self.device)

    def loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        rows = rows.to(self.device)
        return self.of(model, self.sources[rows], self.labels[rows])

    def of(self, model: nn.Module, sources: Tensor, labels: Tensor) -> Tensor:
        return model(input_ids=sources, attention_mask=(sources > 0).long(), labels=labels, use_cache=False).loss

    @torch.inference_mode()
    def nats(self, model: nn.Module) -> float:
        total = count = 0.0
        for part in range(0, len(self.test[0]), 500):
            sources, labels = (t[part : part + 500] for t in self.test)
            asked = int((labels != NOT_ASKED).sum())
            total, count = total + asked * self.of(model, sources, labels).item(), count + asked
        return total / count

    def save(self, model, folder: Path) -> None:
        """With a tokenizer that reads characters."""
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

    def pairs(self, path: Path, seed: int) -> None:
        rows = torch.randperm(len(self.read), generator=torch.Generator().manual_seed(seed))[:PAIRS]
        texts = [self.read[row] for row in rows]
        path.write_text("".join(f"{without_vowels(text)}\t{text}\n" for text in texts))


def new_model(vocabulary: int):
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocabulary, d_model=256, d_kv=32, d_ff=768, num_layers=4, num_heads=8, dropout_rate=0.1,
            decoder_start_token_id=0, initializer_factor=1.0,
        )
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=4000, help="of training the model, 128 sentences each")
    parser.add_argument("--more", type=int, default=200, help="steps of training a conversion")
    parser.add_argument("--sentences", type=int, default=2000, help="of the test")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, nargs="+", help="only print the table of these --json files")
    args = parser.parse_args()
    if args.table:
        return print(table([row for file in args.table for row in json.loads(file.read_text())]))
    device, began = "cuda" if torch.cuda.is_available() else "cpu", time.perf_counter()
    task, found = Task(device, args.sentences), []
    for seed in map(int, args.seeds.split(",")):
        with tempfile.TemporaryDirectory() as temporary:
            found += of_seed(task, args, seed, Path(temporary), device)
        print(f"seed {seed} done after {time.perf_counter() - began:.0f} s", flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def of_seed(task: Task, args, seed: int, folder: Path, device: str) -> list[dict]:
    torch.manual_seed(seed)
    model = new_model(len(task.ids)).to(device)
    order = passes(len(task.read), 128, args.steps, seed)
    took = descend(model, list(model.parameters()), task.loss, order, 1e-3)
    original = task.nats(model.eval())
    print(f"seed {seed}: trained in {took:.0f} s, {original:.4f} nats", flush=True)
    task.save(model, folder / "model")
    task.pairs(folder / "pairs.tsv", seed)
    source = TextSource(str(folder / "pairs.tsv"))
    run = searched(folder / "model", folder / "run", CONVERSIONS, source, tokens=TOKENS, seed=seed)
    more = passes(len(task.read), 128, args.more, 1000 + seed)
    descend(model.train(), list(model.parameters()), task.loss, more, 3e-4)
    after = task.nats(model.eval())
    found = [{"seed": seed, "name": "original", "share": 1.0, "before": original, "after": after}]
    for share in SHARES:
        for number, conversion in enumerate(CONVERSIONS):
            start = exported(run, conversion, share, folder / f"{share}-{number}", source, TOKENS, seed)
            before, after, student = trained(start, conversion, task.loss, more, 3e-4, device, task.nats)
            found.append({"seed": seed, "name": conversion.name, "share": share, "before": before, "after": after})
            if seed == 0:
                found[-1]["exported"] = of_folder(task, student, folder / f"{share}-{number}-trained", device)
            print(json.dumps(found[-1]), flush=True)
    return found


def of_folder(task: Task, student, folder: Path, device: str) -> float:
    """Nats of what was trained, exported and loaded as a user would."""
    from transformers import AutoModelForSeq2SeqLM

    written(student, folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    return task.nats(model.to(device).eval())


def table(found: list[dict]) -> str:
    """Nats per character, mean and standard error over seeds."""
    lines = ["| conversion | KV heads | before training | after |", "| --- | --- | --- | --- |"]
    whole = [r for r in found if r["share"] == 1.0]
    before, after = (mean_and_error([r[key] for r in whole]) for key in ("before", "after"))
    lines.append(f"| original | 8 | {before} | {after} |")
    for share, name in SHARES.items():
        for conversion in CONVERSIONS:
            rows = [r for r in found if r["share"] == share and r["name"] == conversion.name]
            before, after = (mean_and_error([r[key] for r in rows]) for key in ("before", "after"))
            lines.append(f"| {conversion.name} | {name} | {before} | {after} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
