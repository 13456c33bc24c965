"""Damaged and hostile input, in numbers: how often a command ends in success or one clear line, and how often not.

    python bench/faults.py                    # 1,000 damaged checkpoints and what else there is: 40 minutes on 2 cores
    python bench/faults.py --quick            # a few of each class, as in the tests
    python bench/faults.py --only config --seed 7 --show       # what was said, case by case

One process imports everything once; each case is a child of it with a limit on memory and on time, that runs inspect,
search, evaluate and export until one of them refuses. Counted are: clean (it went through, or ended with exit code 1
and one line), tracebacks, hangs, and harms: a damaged input that was changed, numbers that are not finite in a result,
files left behind, memory eaten, death by signal.
"""

import argparse
import copy
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1")

from measured import report

MEMORY = 6 * 2**30  # bytes of address space that a child may add
SECONDS = 60
Case = tuple[str, Callable[[Path], object]]  # what is done to a copy of the model


@dataclass
class Outcome:
    kind: str  # clean, refused, traceback, hang, harm
    said: str


# What is done to a model


def headers(rng: random.Random) -> Iterator[Case]:
    odd = [-1, 0, 2**40, 2**63, 1.5, "1", None, [], {}, True, float("nan")]
    while True:
        kind, value = (
            rng.choice(["dtype", "shape", "offsets", "bytes", "length", "cut", "name", "json"]),
            rng.choice(odd),
        )
        seed = rng.random()

        def damage(folder: Path, kind=kind, value=value, seed=seed) -> None:
            path, local = folder / "model.safetensors", random.Random(seed)
            raw = path.read_bytes()
            (length,) = struct.unpack("<Q", raw[:8])
            header = json.loads(raw[8 : 8 + length])
            name = local.choice([n for n in header if n != "__metadata__"])
            if kind == "dtype":
                header[name]["dtype"] = local.choice(["I64", "BOOL", "U8", "F8_E4M3", "X", 7, value])
            elif kind == "shape":
                header[name]["shape"] = local.choice([value, [value], [*header[name]["shape"], value], [2, 3]])
            elif kind == "offsets":
                header[name]["data_offsets"] = local.choice([value, [0, value], [value, 8], [8, 0], [0, 2, 4]])
            elif kind == "name":
                header[local.choice(["", "\x1b[2J", "../../x", name.upper()])] = header.pop(name)
            text = json.dumps(header).encode()
            if kind == "json":
                text = local.choice([b"[" * 100_000, b"{", b"\xff\xfe", b"null", b"[]", text + b"}"])
            size = struct.pack("<Q", len(text))
            if kind == "length":
                size = struct.pack("<Q", local.choice([0, 7, len(text) + 9, 2**40, 2**64 - 1]))
            whole = size + text + raw[8 + length :]
            if kind == "cut":
                whole = whole[: local.randrange(len(whole))]
            elif kind == "bytes":
                at = local.randrange(8 + length)
                whole = whole[:at] + bytes([local.randrange(256)]) + whole[at + 1 :]
            path.write_bytes(whole)

        yield f"{kind} {value}", damage


def tensors(rng: random.Random) -> Iterator[Case]:
    while True:
        kind, seed = (
            rng.choice(["nan", "inf", "huge", "zero", "drop", "turn", "shorter", "wider", "int", "extra"]),
            rng.random(),
        )

        def damage(folder: Path, kind=kind, seed=seed) -> None:
            import torch
            from safetensors.torch import load_file, save_file

            path, local = folder / "model.safetensors", random.Random(seed)
            state = load_file(path)
            name = local.choice(list(state))
            t = state[name]
            if kind in ("nan", "inf", "huge"):
                t.view(-1)[local.randrange(t.numel())] = {"nan": float("nan"), "inf": float("inf"), "huge": 1e38}[kind]
            elif kind == "zero":
                t.zero_()
            elif kind == "drop":
                del state[name]
            elif kind == "turn":
                state[name] = t.T.contiguous() if t.ndim == 2 else t[:, None].contiguous()
            elif kind == "shorter":
                state[name] = t[: len(t) // 2].contiguous()
            elif kind == "wider":
                state[name] = torch.cat([t, t])
            elif kind == "int":
                state[name] = t.to(local.choice([torch.int8, torch.int64, torch.bool]))
            else:
                state["model.layers.99.self_attn.q_proj.weight"] = t.clone()
            path.unlink()
            save_file(state, path, metadata={"format": "pt"})

        yield kind, damage


def config_fields(rng: random.Random) -> Iterator[Case]:
    odd = [0, -1, 1, 3, 7, 1.5, 10**9, 2**70, 1e308, "8", "", "x" * 10_000, None, True, [], [1], {}, {"a": {"b": []}}]
    odd += [float("nan"), float("inf"), "\x1b[31m[bold]red", ["../../etc/passwd"]]
    extra = """layer_types rope_parameters rope_scaling text_config auto_map architectures torch_dtype
        quantization_config sliding_window tie_word_embeddings attention_bias pad_token_id head_dim hidden_act
        _attn_implementation attn_implementation generation_config vocab_size""".split()  # noqa: SIM905
    while True:
        field, value, drop = rng.random(), copy.deepcopy(rng.choice(odd)), rng.random() < 0.1

        def damage(folder: Path, field=field, value=value, drop=drop) -> None:
            path = folder / "config.json"
            config = json.loads(path.read_text())
            names = sorted({*config, *extra})
            name = names[int(field * len(names))]
            if drop:
                config.pop(name, None)
            else:
                config[name] = value
            path.write_text(json.dumps(config))

        yield f"{field:.3f} {str(value)[:30]} {drop}", damage


def config_files(rng: random.Random) -> Iterator[Case]:
    contents = [
        "",
        "null",
        "[]",
        "{",
        "[" * 100_000,
        '{"a":' * 2000 + "1" + "}" * 2000,
        "\x00",
        "{}",
        '"x"',
        "\ufeff{}",
    ]
    names = """config.json tokenizer.json tokenizer_config.json special_tokens_map.json generation_config.json
        model.safetensors.index.json""".split()  # noqa: SIM905
    while True:
        name, content, kind = (
            rng.choice(names),
            rng.choice(contents),
            rng.choice(["text", "text", "gone", "dir", "link", "pipe"]),
        )

        def damage(folder: Path, name=name, content=content, kind=kind) -> None:
            path = folder / name
            path.unlink(missing_ok=True)
            if kind == "text":
                path.write_text(content)
            elif kind == "dir":
                path.mkdir()
            elif kind == "link":
                path.symlink_to("/dev/zero")
            elif kind == "pipe":
                os.mkfifo(path)

        yield f"{kind} {name} {content[:12]!r}", damage


def index_files(rng: random.Random) -> Iterator[Case]:
    odd = [
        None,
        3,
        [],
        "x",
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "missing.safetensors",
        "config.json",
        "",
        {},
    ]
    while True:
        value, whole = copy.deepcopy(rng.choice(odd)), rng.random() < 0.3

        def damage(folder: Path, value=value, whole=whole) -> None:
            index = {
                "weight_map": value if whole else {"model.norm.weight": value, "lm_head.weight": "model.safetensors"}
            }
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))

        yield f"{value} {whole}", damage


def pickles(rng: random.Random) -> Iterator[Case]:
    bomb = b"cos\nsystem\n(S'touch HACKED'\ntR."
    while True:
        name, gone = (
            rng.choice(["pytorch_model.bin", "tokenizer.pkl", "training_args.bin", "model.pt"]),
            rng.random() < 0.5,
        )

        def damage(folder: Path, name=name, gone=gone) -> None:
            (folder / name).write_bytes(bomb)
            if gone:
                (folder / "model.safetensors").unlink()

        yield f"{name} {gone}", damage


CLASSES = {
    "headers": (headers, 190), "tensors": (tensors, 170), "index": (index_files, 65), "config": (config_fields, 410),
    "files": (config_files, 150), "pickles": (pickles, 15),
}  # fmt: skip


# What is run on it


def commands(model: Path, work: Path) -> list[list[str]]:
    run, text = str(work / "run"), ["--text", "demo", "--tokens", "1024", "--window", "64"]
    return [
        ["inspect", str(model)],
        ["search", str(model), "-o", run, *text, "--population", "8", "--generations", "2", "--jobs", "1"],
        ["evaluate", run, "--text", "demo", "--window", "64", "--limit", "2", "--layouts", "0,1"],
        ["export", run, "-o", str(work / "out"), "--kv-ratio", "1/2"],
    ]


def attempt(model: Path, work: Path) -> Outcome:
    """All commands in a child of this process."""
    before = {p.name: p.lstat().st_mtime_ns for p in model.iterdir()}
    log = work / "log"
    child = os.fork()
    if child == 0:
        in_child(model, work, log)
    began = time.monotonic()
    status = None
    while status is None and time.monotonic() - began < SECONDS:
        done, code = os.waitpid(child, os.WNOHANG)
        status = code if done else None
        time.sleep(0.01)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return Outcome("hang", log.read_text(errors="replace")[-300:])
    said = log.read_text(errors="replace")
    if "Traceback (most recent call last)" in said or "internal error" in said:
        return Outcome("traceback", said[-600:])
    if os.WIFSIGNALED(status):
        return Outcome("harm", f"died of signal {os.WTERMSIG(status)}: {said[-300:]}")
    left = [p.name for p in (*work.rglob(".*"), *model.parent.glob(".*")) if "partial" in p.name or "working" in p.name]
    hacked = [p for p in (work / "HACKED", Path("HACKED"), model / "HACKED") if p.exists()]
    if left or hacked or before != {p.name: p.lstat().st_mtime_ns for p in model.iterdir()}:
        return Outcome("harm", f"left {left or hacked or 'the model changed'}; {said[-300:]}")
    table = work / "run" / "pareto.csv"
    if table.is_file() and any(word in table.read_text().lower() for word in (",nan", ",inf", ",-inf")):
        return Outcome("harm", "numbers that are not finite in pareto.csv")
    lines = [line for line in said.splitlines() if line.startswith("grouper: ")]
    code = os.WEXITSTATUS(status)
    if code == 0:
        return Outcome("clean", "")
    if code == 1 and len(lines) == 1 and len(lines[0]) < 600:
        return Outcome("refused", lines[0])
    return Outcome("traceback", f"exit {code}: {said[-600:]}")


def in_child(model: Path, work: Path, log: Path) -> None:
    """Never returns."""
    code = 70
    try:
        os.setsid()
        os.chdir(work)
        stream = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        import cli

        for arguments in commands(model, work):
            sys.argv = ["grouper", *arguments]
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code or 0
            if code:
                break
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 70)


def small_model(folder: Path) -> Path:
    """A Llama of two layers, with the tokenizer of the model in the box."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from grouper.model.checkpoint import DEMO

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in DEMO.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    return folder


def imported() -> None:
    """Everything that the commands need, once, so that children start at once."""
    import cli  # noqa: F401
    import search
    from grouper import export
    from grouper.model.in_memory import InMemoryModel
    from grouper.model.streamed import StreamedModel
    from search import demo  # noqa: F401

    _ = (search.search, search.evaluate, search.export_from_run, export, InMemoryModel, StreamedModel)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=CLASSES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="cases of each class")
    parser.add_argument("--show", action="store_true", help="what each case said")
    args = parser.parse_args()
    imported()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        good = small_model(Path(place) / "good")
        for name, (cases, many) in CLASSES.items():
            if args.only and name != args.only:
                continue
            count = args.count or (6 if args.quick else many)
            found = dict.fromkeys(("clean", "refused", "traceback", "hang", "harm"), 0)
            source = cases(random.Random(f"{name}{args.seed}"))
            for number in range(count):
                what, damage = next(source)
                work = Path(place) / f"{name}-{number}"
                shutil.copytree(good, work / "model")
                damage(work / "model")
                outcome = attempt(work / "model", work)
                found[outcome.kind] += 1
                if args.show or outcome.kind not in ("clean", "refused"):
                    print(f"{name} {number}, {what}: {outcome.kind}. {outcome.said}", file=sys.stderr, flush=True)
                shutil.rmtree(work, ignore_errors=True)
            rows.append({"class": name, "cases": count, **found})
    report("faults", rows)
    if any(row[kind] for row in rows for kind in ("traceback", "hang", "harm")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
