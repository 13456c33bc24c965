"""More damage for bench/faults.py: YAML options, tokenizers, names, numbers, outputs, full disks and killed workers."""

import copy
import json
import os
import random
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from damage import Case, Commands, all_commands, copy_run

ODD = [None, 0, -1, 1.5, 10**30, float("inf"), "", "x", "-1", "\x1b[2J", [], [1], [None], [["a"]], {}, {"a": {"b": 1}}]


def yaml_files(rng: random.Random) -> Iterator[Case]:
    """Files for --config: deep, large, with types that no option has, and with huge numbers."""
    values = ["{}", "[[1]]", "!!set {a, b}", "2026-11-28T10:00:00Z", "9" * 30, "9" * 5000, "1e999", ".nan", "-1",
              ":".join(["59"] * 500), "!!binary aGVsbG8=", "!!python/object/apply:os.system [touch HACKED]", "~",
              "x", "true", "&a [*a]", "'\x1b[2J'", "1_000_000_000_000"]  # fmt: skip
    wholes = ["".join(" " * i + "a:\n" for i in range(1000)), "[" * 50_000, "{" * 50_000, "- seed", "x", "\x00", "a: b",
              "seed: 1\n" * 50_000, "&a [*a]", "<<: *a"]  # fmt: skip
    names = {
        1: "population generations seed jobs memory kv-dtype method fitness set text device sensitivity",
        2: "window limit layouts refine refine-tokens dtype set",
        3: "layout kv-ratio deploy merge set refine format",
    }
    while True:
        which, value, whole = rng.randrange(1, 4), rng.choice(values), rng.choice(wholes)
        name, is_whole = rng.choice(names[which].split()), rng.random() < 0.2

        def damage(work: Path, which=which, content=whole if is_whole else f"{name}: {value}\n") -> Commands:
            (work / "options.yaml").write_text(content)
            if which > 1:
                copy_run(work)
            return [[*all_commands(work)[which], "--config", "options.yaml"]]

        yield f"{which} {'whole ' + whole[:10] if is_whole else name + ' ' + value[:20]!r}", damage


def tokenizers(rng: random.Random) -> Iterator[Case]:
    """Damaged tokenizer.json and related files, from which a GGUF is written."""
    places = ["model", "model.type", "model.vocab", "model.merges", "model.byte_fallback", "added_tokens",
              "pre_tokenizer", "post_processor", "added_tokens.0", "pre_tokenizer.type"]  # fmt: skip
    files = {"tokenizer.json": 7, "tokenizer_config.json": 1, "special_tokens_map.json": 1, "generation_config.json": 1}
    while True:
        file = rng.choices([*files], [*files.values()])[0]
        place, value, whole = rng.choice(places), copy.deepcopy(rng.choice(ODD)), rng.random() < 0.3

        def damage(work: Path, file=file, place=place, value=value, whole=whole) -> Commands:
            copy_run(work)
            path = work / "model" / file
            data = json.loads(path.read_text()) if path.is_file() else {}
            if file == "tokenizer.json" and not whole:
                inner, *_, last = data, *place.split(".")
                for step in place.split(".")[:-1]:
                    inner = inner[step] if isinstance(inner, dict) else inner[int(step)]
                if isinstance(inner, dict):
                    inner[last] = value
                elif inner:
                    inner[int(last)] = value
            else:
                data = value if whole else {**data, "bos_token": value, "eos_token_id": value}
            path.write_text(json.dumps(data))
            gguf = ["export", str(work / "run"), "-o", str(work / "out"), "--format", "gguf", "--layout", "0"]
            return [[*gguf, "--no-refine"]]

        yield f"{file} {place if not whole else 'whole'} {str(value)[:20]}", damage


def hostile_names(rng: random.Random) -> Iterator[Case]:
    """Hostile names of model and output folders, hostile texts, and hostile model cards."""
    names = [
        "<script>alert(1)<",
        "a\x1b[2J",
        "\u202egnp",
        "a\nb",
        "---",
        "# x",
        "`",
        "```",
        "$x^2$",
        "_x",
        "~!@#",
        "{0}",
    ]
    fronts = ["license: [mit, [x]]", "license: {a: b}", "[" * 5000, "a: &a [*a]", "license: '\x1b[2J'", "---", "x: [",
              "language: no"]  # fmt: skip
    while True:
        name, front = rng.choice(names), rng.choice(fronts)

        def damage(work: Path, name=name, front=front) -> Commands:
            (work / "model").rename(work / name)
            (work / name / "README.md").write_text(f"---\n{front}\n---\nWords\n")
            (work / f"{name}.txt").write_text("My fellow citizens, the state of the Union is strong. " * 200)
            model, run, text = f"./{name}", f"./run {name}", f"./{name}.txt"
            small = ["--fitness", "weight", "--population", "4", "--generations", "1", "--jobs", "1"]
            return [
                ["inspect", model],
                ["search", model, "-o", run, *small],
                ["evaluate", run, "--text", text, "--window", "64", "--limit", "1", "--layouts", "0"],
                ["export", run, "-o", f"./out {name}", "--kv-ratio", "1/2", "--no-refine"],
                ["report", run, "--no-similar"],
            ]

        yield f"{name!r} {front[:15]!r}", damage


def numbers(rng: random.Random) -> Iterator[Case]:
    """Numbers and devices outside the valid range."""
    values = ["18446744073709551616", "1" + "0" * 30, "9223372036854775808", "1000000000", "-" + "9" * 20]
    devices = ["meta", "privateuseone", "hpu", "cpu:99", "cuda:99", "mkldnn", "", "\x1b[2J"]
    names = {
        0: ["--context", "--batch"],
        1: ["--seed", "--population", "--generations", "--tokens", "--window", "--kv-heads-multiple-of", "--jobs"],
        2: ["--window", "--limit"],
        3: ["--layout", "--kv-bytes-per-token", "--refine-tokens", "--tokens"],
        4: ["--seed", "--lora-rank", "--tokens", "--step-tokens", "--patience"],
    }
    while True:
        which, value = rng.randrange(5), rng.choice(values)
        name = rng.choice(names[which])
        if name == "--refine-tokens":  # a thousand million tokens are valid, and take long
            value = "1" + "0" * 30
        if which and rng.random() < 0.25:
            name, value = "--device", rng.choice(devices)

        def damage(work: Path, which=which, name=name, value=value) -> Commands:
            if which > 1:
                copy_run(work)
            heal = ["uptrain", str(work / "out"), "-o", str(work / "healed"), "--base", str(work / "model"), "--text",
                    "demo", "--window", "64", "--train", "lora", "--tokens", "4096"]  # fmt: skip
            if which == 4:
                shutil.copytree(work.parent / "reference" / "out", work / "out")
            command = [*all_commands(work), heal][which]
            if name in command:
                at = command.index(name)
                command = command[:at] + command[at + 2 :]
            return [[*command, name, value]]

        yield f"{which} {name} {value!r}", damage


def pages(rng: random.Random) -> Iterator[Case]:
    """Reports, pictures, comparisons and kept calibrations written into a model's folder, over foreign files, and where
    they belong."""
    places = ["model", "model/x", "model/config.json", "model/x.svg", "taken", "taken/mine.txt", "taken/x.svg", "file",
              "link", "link/x.html", ".", "/dev/null", "/proc/x.svg", "run", "run/run.json", "new",
              "new.svg"]  # fmt: skip
    while True:
        kind, place, more = rng.randrange(4), rng.choice(places), rng.random() < 0.5

        def damage(work: Path, kind=kind, place=place, more=more) -> Commands:
            copy_run(work)
            (work / "taken").mkdir()
            (work / "taken" / "mine.txt").write_text("mine")
            (work / "file").write_text("mine")
            (work / "link").symlink_to("taken")
            overwrite = ["--overwrite"] if more else []
            if kind == 0:
                return [["report", "run", "--no-similar", "-o", place, *overwrite]]
            if kind == 1:
                return [["report", "run", "--no-similar", "--format", "svg", "-o", place, *overwrite]]
            if kind == 2:
                shutil.copytree(work / "run", work / "run2")
                return [["compare", "run", "run2", "-o", place]]
            _, search, *_ = all_commands(work)
            return [[*search[:3], str(work / "other"), *search[4:], "--keep-calibration", place]]

        yield f"{kind} {place} {more}", damage


def full_disks(rng: random.Random) -> Iterator[Case]:
    """A limit on file sizes, reached at any point. Libraries report it in words of their own."""
    while True:
        which, most = rng.randrange(1, 4), int(10 ** rng.uniform(3.6, 6))  # the messages have to fit, too

        def damage(work: Path, which=which, most=most) -> Commands:
            if which > 1:
                copy_run(work)
            (work / "limit").write_text(str(most))  # in bytes; the child sets it for itself
            return [all_commands(work)[which]]

        yield f"{which} {most}", damage


def killed_workers(rng: random.Random) -> Iterator[Case]:
    """A process that searches layers is killed, as the system does when memory runs out."""
    while True:
        after = rng.uniform(0.5, 8)

        def damage(work: Path, after=after) -> Commands:
            _, search, *_ = all_commands(work)
            (work / "kill").write_text(str(after))
            return [[*search[:-1], "2"]]

        yield f"after {after:.1f} s", damage


def set_limits(work: Path) -> None:
    """In the child that runs the commands: set the limits that the case asks for."""
    if (work / "limit").is_file():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        most = int((work / "limit").read_text())
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    if (work / "kill").is_file():
        threading.Thread(target=_kill_one, args=(float((work / "kill").read_text()),), daemon=True).start()


def _kill_one(after: float) -> None:
    time.sleep(after)
    for process in psutil.Process().children():
        if "spawn_main" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
            return


CLASSES = {
    "yaml": (yaml_files, 200), "tokenizers": (tokenizers, 150), "names": (hostile_names, 80), "numbers": (numbers, 150),
    "pages": (pages, 120), "disks": (full_disks, 80), "workers": (killed_workers, 20),
}  # fmt: skip
