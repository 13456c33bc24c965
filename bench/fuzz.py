"""Fuzzing of all parsers with hypothesis: each has to read a damaged copy of a good file, or to refuse it.

    python bench/fuzz.py --minutes 10                # every parser in turn
    python bench/fuzz.py --only header --seed 7

Reports the number of examples and of finds. A find is any error other than GrouperError, or an example that takes more
than SECONDS of processor time. It is shrunk and printed with its damaged bytes.
"""

import argparse
import json
import os
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1")

from faults import small_model
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from measured import report

from grouper import Checkpoint, GrouperError, HeadLayout, export
from grouper.calibration.documents import JsonLines, PlainText
from grouper.calibration.seen import Seen
from grouper.checkpoint.header import read_header
from grouper.checkpoint.validation import check_configuration
from grouper.export.card import _card_of
from grouper.export.facts import read_facts
from grouper.export.gguf.tokenizer import check_tokenizer
from grouper.export.hf.code_names import copy_without_code
from grouper.families.architecture import Architecture
from grouper.parsing import read_object
from grouper.refinement.store import load_layer
from grouper.schema import document, text_of
from grouper.uptraining.saved import SavedTraining
from search import RunFolder, SearchOptions, search
from search.commands.config_file import read_options
from search.engine.sensitivity import _read as read_sensitivity
from search.evaluation.proxies import read_proxies
from search.runs.record import noted
from search.runs.samples import read_samples
from search.runs.settings import RunSettings

SECONDS = 5.0
SEEN = {"anchors": "AAAAAAAAAAA=", "window": 64}
EVALUATED = {"text": "a", "digest": "b", "windows": [2, 64], "dtype": "float32", "set": [], "tasks": {"limit": 3}}
YAML = b"seed: 1\nmethod: [qcqa-ac, ward]\nset:\n- a.b=1\ntext: 'x'\n"
CARD = b"---\nlicense: mit\nlanguage:\n- en\ntags: [a]\n---\n# A model\n<b>text</b>\n"
NUMBERS = [-1, 0, 1, 10**9, 2**62, 2**64, 10**30, 0.5, 1e999, float("nan")]
SCALARS = st.sampled_from([None, True, "", "x", "\x1b[2J", "\ud800", "9" * 400, *NUMBERS])
SPLICES = st.sampled_from(["", "nan", "-1", "9" * 30, "1e999", '"', ",", "\n", "[", "{", "[" * 3000, "\x00", "&a [*a]"])
ANYTHING = st.recursive(
    SCALARS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
Read = Callable[[Path], object]


def changed(draw: Callable, value: object) -> object:
    """The JSON value with one value inside it replaced, removed or doubled."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(ANYTHING)
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(min(len(value), 50))))
    found = value.copy()
    if draw(st.integers(0, 7)) == 0:
        del found[key]
    else:
        found[key] = changed(draw, value[key])
    return found


def spliced(draw: Callable, content: bytes) -> bytes:
    """The bytes with one stretch replaced."""
    begin = draw(st.integers(0, len(content)))
    end = draw(st.integers(begin, min(len(content), begin + 100)))
    new = draw(SPLICES.map(str.encode) | st.binary(max_size=8) | st.text(max_size=8).map(lambda t: t.encode("utf-8")))
    return content[:begin] + new + content[end:]


def damaged(draw: Callable, content: bytes) -> bytes:
    """Damaged content of a file: mostly changed values for JSON, changed bytes for all others."""
    try:
        data = json.loads(content)
    except ValueError:
        return spliced(draw, content)
    if draw(st.integers(0, 3)) == 0:
        return spliced(draw, content)
    return json.dumps(changed(draw, data)).encode()


def with_length(draw: Callable, content: bytes) -> bytes:
    """A safetensors file with a damaged header, whose length is right or wrong."""
    (length,) = struct.unpack("<Q", content[:8])
    header = damaged(draw, content[8 : 8 + length])
    size = draw(st.just(len(header)) | st.sampled_from([0, 7, 2**40, 2**64 - 1]))
    return struct.pack("<Q", size) + header + content[8 + length :]


def read_head(path: Path) -> None:
    content = path.read_bytes()
    read_header("x", lambda start, stop: content[start:stop], len(content))


def read_config(path: Path) -> None:
    config = read_object(path, "config.json")
    check_configuration(config, "x")
    Architecture.of(config)


def read_rows_of(path: Path) -> None:
    rows = JsonLines(path, lambda: None)
    list(rows.pieces(0, rows.size, 64))
    rows.chats()


def read_plain(path: Path) -> None:
    text = PlainText("x", partial(open, path, "rb"))
    list(text.pieces(0, text.size, 7))


def parsers(place: Path) -> dict[str, tuple[Path, Read, Callable]]:
    """Parsers by name: a good file, a function that reads it, a function that damages it."""
    model, out = small_model(place / "model"), place / "out"
    options = SearchOptions(fitness="weight", population=8, generations=2)
    search(model, place / "run", options)
    run = RunFolder(place / "run")
    shutil.rmtree(run.path / "digests")  # digests would refuse damage before the parsers under test
    export(model, run.layout(5), out)
    for name, text in {
        "run/evaluation.json": json.dumps(EVALUATED), "run/sensitivity.csv": "layer,error,nats\n0,0.5,0.1\n1,1.0,0.4\n",
        "run/proxies.csv": "fitness,merge,kv_ratio,layouts,spearman,kendall\nweight,mean,0.5,5,0.9,\n",
        "run/samples.json": json.dumps({"samples": [{"layout": 1, "merge": "mean", "prompt": "a", "text": "b"}]}),
        "seen.json": json.dumps(SEEN), "options.yaml": YAML.decode(), "model/README.md": CARD.decode(),
        "rows.jsonl": '{"text": "a b"}\n{"messages": [{"role": "user", "content": "c"}]}\n', 
        "plain.txt": "häuser und so",
        "train/log.jsonl": '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n',
    }.items():  # fmt: skip
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    half = Path(__file__).parent.parent / "tests/data/0.1.0/half.refine/cfed29a12f6271ea/layer-000.safetensors"
    (place / half.parent.name).mkdir()
    layer = Path(shutil.copyfile(half, place / half.parent.name / half.name))
    known = {"seed", "method", "set", "text"}
    files: dict[str, tuple[str, Read]] = {
        "run.json": ("run/run.json", lambda p: RunSettings.from_json(p.read_text(errors="replace"))),
        "layout": ("run/layouts/0001.json", lambda p: HeadLayout.from_json(p.read_text(errors="replace"))),
        "layer": ("run/layers/00.csv", lambda p: run.read_layer(0, 4, 4)),
        "front": ("run/pareto.csv", lambda p: run.front()), "evaluation": ("run/evaluation.json", lambda p: noted(run)),
        "samples": ("run/samples.json", lambda p: read_samples(run.path)),
        "sensitivity": ("run/sensitivity.csv", lambda p: read_sensitivity(run)),
        "proxies": ("run/proxies.csv", lambda p: read_proxies(run.path)),
        "facts": ("out/grouper.json", lambda p: read_facts(out)),
        "seen": ("seen.json", lambda p: Seen.from_data(document(text_of(p)))),
        "options": ("options.yaml", lambda p: read_options(p, "search", known, {"set"})),
        "config": ("model/config.json", read_config), "card": ("model/README.md", lambda p: _card_of(p.parent)),
        "tokenizer": ("model/tokenizer.json", lambda p: check_tokenizer(p.parent)),
        "names of code": ("model/tokenizer_config.json", lambda p: copy_without_code(p, place / "copy")),
        "rows": ("rows.jsonl", read_rows_of), "plain": ("plain.txt", read_plain),
        "log": ("train/log.jsonl", lambda p: SavedTraining(p.parent).forget_after(1)),
        "index": ("model/model.safetensors.index.json", lambda p: Checkpoint.open(model).weight_files),
    }  # fmt: skip
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    found = {name: (place / file, read, damaged) for name, (file, read) in files.items()}
    whole = (model / "model.safetensors").read_bytes()
    (place / "head.safetensors").write_bytes(whole[: 8 + struct.unpack("<Q", whole[:8])[0]])
    return {
        **found, "header": (place / "head.safetensors", read_head, with_length),
        "refined layer": (layer, load_layer, with_length),
    }  # fmt: skip


def drive(path: Path, read: Read, damage: Callable, number: int, most: int) -> tuple[int, str | None]:
    """(number of examples, the first find). Restores the good file afterwards."""
    good, count, last = path.read_bytes(), 0, b""

    @seed(number)
    @settings(
        max_examples=most, deadline=None, database=None, print_blob=False, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(st.data())
    def example(data: st.DataObject) -> None:
        nonlocal count, last
        count, last = count + 1, damage(data.draw, good)
        path.write_bytes(last)
        began = time.process_time()
        try:
            read(path)
        except GrouperError as error:
            assert len(str(error)) < 5000, "a line of more than 5,000 characters"
        assert time.process_time() - began < SECONDS, f"more than {SECONDS:g} s"

    try:
        example()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        found = f"{type(error).__name__}: {error} at {Path(where.filename).name}:{where.lineno} of {last[:400]!r}"
        return count, found
    finally:
        path.write_bytes(good)
    return count, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of processor time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=200, help="of a parser at a time")
    parser.add_argument("--only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        known = {name: one for name, one in parsers(Path(place)).items() if args.only in (None, name)}
        counts, finds, turn = dict.fromkeys(known, 0), dict.fromkeys(known, 0), 0
        began = time.process_time()
        while time.process_time() - began < 60 * args.minutes:
            for place_in_list, (name, one) in enumerate(known.items()):
                count, found = drive(*one, args.seed + turn * len(known) + place_in_list, args.examples)
                counts[name] += count
                if found:
                    finds[name] += 1
                    print(f"{name}: {found}", file=sys.stderr, flush=True)
            turn += 1
            print(
                f"{time.process_time() - began:.0f} s, {sum(counts.values()):,} examples", file=sys.stderr, flush=True
            )
    report("fuzz", [{"parser": name, "examples": counts[name], "finds": finds[name]} for name in known])
    if any(finds.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
