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
Commands = list[list[str]]
Case = tuple[str, Callable[[Path], Commands | None]]  # what is done to a copy of the model, or around it


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


def run_files(rng: random.Random) -> Iterator[Case]:
    """Files of a run, which `evaluate` and `export` then read."""
    odd = ["", "null", "[]", "{}", "\x00\xff", "layout,method\n0,x\n", '{"layers": [[[0, 0]]]}', "[" * 50_000, "1e999"]
    while True:
        seed, value = rng.random(), rng.choice(odd)

        def damage(work: Path, seed=seed, value=value) -> Commands:
            local = random.Random(seed)
            copy_run(work)
            path = local.choice(sorted(p for p in (work / "run").rglob("*") if p.is_file()))
            raw = path.read_bytes()
            at = local.randrange(len(raw))
            digits = [i for i, byte in enumerate(raw) if chr(byte).isdigit()] or [at]
            place = local.choice(digits)
            path.write_bytes(local.choice([
                value.encode("latin-1"), raw[:at], raw[:at] + bytes([local.randrange(256)]) + raw[at + 1 :],
                raw[:place] + local.choice([b"-7", b"nan", b"9" * 30, b'"x"']) + raw[place + 1 :],
            ]))  # fmt: skip
            *_, evaluate, export = all_commands(work)
            return [evaluate, export]

        yield f"{seed:.3f} {value[:12]!r}", damage


def outputs(rng: random.Random) -> Iterator[Case]:
    places = [*"model model/run . / /dev/null /proc/run taken file link a/b/c -o file/run hf_abcdefGHIJ12".split()]  # noqa: SIM905
    places += ["x" * 300, "new\nline", "[bold]red", "\x1b[2J", "$x^2$", "<b>#", "\udcff", " ", "\u202egnp"]
    while True:
        place, which = (
            rng.choice(places),
            rng.choice(["search", "search --overwrite", "export", "export --overwrite", "demo"]),
        )

        def damage(work: Path, place=place, which=which) -> Commands:
            (work / "taken").mkdir()
            (work / "taken" / "mine.txt").write_text("mine")
            (work / "file").write_text("mine")
            (work / "link").symlink_to("taken")
            _, search, _, export = all_commands(work)
            if which == "demo":
                return [["demo", "-o", place]] if place in ("taken", "file", "link", "/", "/dev/null", "model") else []
            name, *more = which.split()
            if name == "export":
                copy_run(work)
            chosen = search if name == "search" else export
            at = chosen.index("-o") + 1
            return [[*chosen[:at], place, *chosen[at + 1 :], *more]]

        yield f"{which} {place!r}", damage


def options(rng: random.Random) -> Iterator[Case]:
    """Every option that takes a number, with numbers that it should not take."""
    values = ["0", "-1", "nan", "inf", "1e9", "99999999999999999999", "0.5", "", "abc", "-0", "1e-9"]
    names = {
        0: ["--context", "--batch", "--card"],
        1: ["--tokens", "--window", "--kv-heads-multiple-of", "--population", "--generations", "--seed", "--jobs",
            "--memory", "--set", "--kv-dtype", "--method", "--fitness"],
        2: ["--window", "--limit", "--layouts", "--memory", "--refine-tokens", "--dtype"],
        3: ["--layout", "--kv-ratio", "--kv-bytes-per-token", "--max-padding", "--memory", "--deploy", "--merge"],
    }  # fmt: skip
    while True:
        which, value = rng.randrange(4), rng.choice(values)
        name = rng.choice(names[which])

        def damage(work: Path, which=which, name=name, value=value) -> Commands:
            if which > 1:
                copy_run(work)
            command = all_commands(work)[which]
            if name in command:
                at = command.index(name)
                command = command[:at] + command[at + 2 :]
            return [[*command, name, value]]

        yield f"{which} {name} {value!r}", damage


def copy_run(work: Path) -> None:
    """The finished run of the undamaged model, as if it were of the model here."""
    shutil.copytree(work.parent / "finished", work / "run")
    settings = work / "run" / "run.json"
    settings.write_text(settings.read_text().replace(str(work.parent / "reference" / "model"), str(work / "model")))


CLASSES = {
    "headers": (headers, 190), "tensors": (tensors, 170), "index": (index_files, 65), "config": (config_fields, 410),
    "files": (config_files, 150), "pickles": (pickles, 15), "runs": (run_files, 150), "outputs": (outputs, 100),
    "options": (options, 150),
}  # fmt: skip
OF_WORK = (run_files, outputs, options)  # which say themselves what is run


# What is run on it


def all_commands(work: Path) -> Commands:
    model, run, text = str(work / "model"), str(work / "run"), ["--text", "demo", "--tokens", "1024", "--window", "64"]
    return [
        ["inspect", model],
        ["search", model, "-o", run, *text, "--population", "8", "--generations", "2", "--jobs", "1"],
        ["evaluate", run, "--text", "demo", "--window", "64", "--limit", "2", "--layouts", "0,1"],
        ["export", run, "-o", str(work / "out"), "--kv-ratio", "1/2"],
    ]


def attempt(work: Path, commands: Commands) -> Outcome:
    """All commands in a child of this process."""
    model, log = work / "model", work / "log"
    before = {p: p.lstat().st_mtime_ns for folder in (model, work / "taken") for p in folder.glob("*")}
    child = os.fork()
    if child == 0:
        in_child(work, commands, log)
    status = waited(child, SECONDS)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return Outcome("hang", log.read_text(errors="replace")[-300:])
    said = log.read_text(errors="replace")
    if "Traceback (most recent call last)" in said or "internal error" in said:
        return Outcome("traceback", said[-600:])
    if os.WIFSIGNALED(status):
        return Outcome("harm", f"died of signal {os.WTERMSIG(status)}: {said[-300:]}")
    left = [p.name for p in work.rglob(".*") if p.name.endswith((".partial", ".lock", ".replaced"))]
    hacked = [p for p in (work / "HACKED", Path("HACKED"), model / "HACKED") if p.exists()]
    after = {p: p.lstat().st_mtime_ns for folder in (model, work / "taken") for p in folder.glob("*")}
    if left or hacked or before != after:
        return Outcome("harm", f"left {left or hacked or 'the model changed'}; {said[-300:]}")
    table = work / "run" / "pareto.csv"
    if table.is_file() and any(word in table.read_text(errors="replace").lower() for word in (",nan", ",inf", ",-inf")):
        return Outcome("harm", "numbers that are not finite in pareto.csv")
    lines = [line for line in said.splitlines() if line.startswith("grouper: ")]
    code = os.WEXITSTATUS(status)
    if code == 0:
        return Outcome("clean", "")
    if code == 2 and "Usage: " in said:
        return Outcome("refused", said.strip().splitlines()[-1])
    if code == 1 and len(lines) == 1 and len(lines[0]) < 600:
        return Outcome("refused", lines[0])
    return Outcome("traceback", f"exit {code}: {said[-600:]}")


def waited(child: int, seconds: float) -> int | None:
    """How it ended, or None where it did not."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    return None


def in_child(work: Path, commands: Commands, log: Path) -> None:
    """Never returns."""
    code = 70 if commands else 0
    try:
        os.setsid()
        os.chdir(work)
        stream = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        import cli

        for arguments in commands:
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
        reference = Path(place) / "reference"
        shutil.copytree(good, reference / "model")
        if attempt(reference, all_commands(reference)).kind != "clean":
            raise SystemExit((reference / "log").read_text())
        shutil.copytree(reference / "run", Path(place) / "finished")
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
                said = damage(work if cases in OF_WORK else work / "model")
                outcome = attempt(work, said if cases in OF_WORK else all_commands(work))
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
