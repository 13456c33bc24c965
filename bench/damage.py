"""Damage to a model, a run or a command line, for bench/faults.py: one generator of cases for each class."""

import copy
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

TEXT = "text.txt"  # next to the working folders; short, because every command tokenises all of it
Commands = list[list[str]]
Case = tuple[str, Callable[[Path], Commands | None]]  # name; damage to a copy of the model or around it


def all_commands(work: Path) -> Commands:
    model, run = str(work / "model"), str(work / "run")
    text = ["--text", str(work.parent / TEXT), "--tokens", "1024", "--window", "64"]
    return [
        ["inspect", model],
        ["search", model, "-o", run, *text, "--population", "8", "--generations", "2", "--jobs", "1"],
        ["evaluate", run, "--text", "demo", "--window", "64", "--limit", "2", "--layouts", "0,1"],
        ["export", run, "-o", str(work / "out"), "--kv-ratio", "1/2", "--refine-tokens", "128"],
    ]


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
    """Damaged files of a run, which `evaluate` and `export` then read."""
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
    """Every option that takes a number, with invalid numbers."""
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
    """Copy the finished run of the undamaged model, changed to refer to the model here."""
    shutil.copytree(work.parent / "finished", work / "run")
    settings = work / "run" / "run.json"
    settings.write_text(settings.read_text().replace(str(work.parent / "reference" / "model"), str(work / "model")))


CLASSES = {
    "headers": (headers, 190), "tensors": (tensors, 170), "index": (index_files, 65), "config": (config_fields, 410),
    "files": (config_files, 150), "pickles": (pickles, 15), "runs": (run_files, 150), "outputs": (outputs, 100),
    "options": (options, 150),
}  # fmt: skip
OF_WORK = (run_files, outputs, options)  # generators that return the commands to run
