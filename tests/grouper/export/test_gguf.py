"""GGUF files, run by a real llama.cpp where it is installed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import ROOT, add_tokenizer, make_model
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from grouper import Checkpoint, ExportOptions, GrouperError, Grouping, HeadLayout, LayerLayout, export
from grouper.calibration.source import DATA
from grouper.compress import Regrouper
from grouper.export.format import Job
from grouper.export.gguf.check import check_file
from grouper.export.gguf.tokenizer import LLAMA3, SPLITS, pre_tokenizer
from grouper.export.gguf.tokenizer import add_tokenizer as add_tokenizer_to
from grouper.export.gguf.write import FILE, llama3_factors
from grouper.export.reference import gathered_reference
from grouper.merging import MERGES

RUNNER = ROOT / "bench" / "engines" / "run_llamacpp.py"
TEXT = "Hello, the year 1984's   best—naïve?\n\n  12345 don't"
LLAMA31 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def ragged(heads: int, kv_heads: int) -> HeadLayout:
    rows = [np.random.default_rng(i).integers(0, kv_heads, kv_heads) for i in range(3)]
    return HeadLayout.from_labels(rows, heads, 16)


@pytest.mark.parametrize(
    ("family", "heads", "kv_heads", "more"),
    [
        ("llama", 8, 8, {}),
        (
            "llama",
            8,
            8,
            {
                "tie_word_embeddings": True,
                "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
            },
        ),
        ("llama", 8, 4, {"rope_parameters": LLAMA31}),
        ("mistral", 12, 4, {"sliding_window": None}),
        ("qwen2", 8, 8, {}),
    ],
)
def test_llama_cpp_decodes_as_the_reference(tmp_path, family, heads, kv_heads, more):
    pytest.importorskip("xllamacpp")  # a binary build, for Linux on x86_64
    folder = add_tokenizer(make_model(tmp_path / "in", family, heads, kv_heads, vocab_size=4096, **more))
    layout = ragged(heads, kv_heads)
    done = export(folder, layout, tmp_path / "out", options=ExportOptions(format="gguf", dtype="float32"))
    assert done.export_class == "gguf" and done.engines == ["llama.cpp"] and done.self_test.passed
    prompt = torch.randint(2, 4000, (1, 20), generator=torch.Generator().manual_seed(2))
    checkpoint = Checkpoint.open(folder)
    merged = Regrouper(checkpoint).merged(layout, MERGES["mean"])
    options = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    with gathered_reference(Job(checkpoint, layout, merged, ExportOptions())) as reference:
        expected = reference.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0, 20:].tolist()
    command = [sys.executable, RUNNER, tmp_path / "out", " ".join(map(str, prompt[0].tolist())), "16", TEXT]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = {
        line.split()[0]: [int(t) for t in line.split()[1:]]
        for line in ran.stdout.splitlines()
        if line.startswith(("TOKENS", "TEXT"))
    }
    assert lines["TOKENS"] == expected, ran.stderr[-2000:]
    assert lines["TEXT"] == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids


def trained(rule: str) -> Tokenizer:
    """A small tokenizer of that rule."""
    corpus = [
        (DATA / "addresses-1977-2016.txt").read_text()[:200_000],
        "1234 90 don't I'LL We've naïve—best?! \n\n\t x=1;  y " * 50,
    ]
    if rule in ("llama-2", "metaspace"):  # SentencePiece's BPE, bytes for what it does not know
        special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        words = Tokenizer(models.BPE(unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Metaspace()
        words.train_from_iterator(
            corpus, trainers.BpeTrainer(vocab_size=900, special_tokens=special, limit_alphabet=80, show_progress=False)
        )
        learned = json.loads(words.to_str())
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        if rule == "llama-2":
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        whole = json.loads(tokenizer.to_str())
        whole["model"] |= {"vocab": learned["model"]["vocab"], "merges": learned["model"]["merges"]}
        return Tokenizer.from_str(json.dumps({**whole, "added_tokens": learned["added_tokens"][:3]}))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule == "smollm")
    first = pre_tokenizers.Digits(individual_digits=True)
    if rule != "smollm":
        first = pre_tokenizers.Split(Regex(next(r for r, name in SPLITS.items() if name == rule)), "isolated")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


@pytest.mark.parametrize("rule", ["smollm", "llama-bpe", "qwen2", "llama-2", "metaspace"])
def test_llama_cpp_reads_text_as_the_tokenizer_does(tmp_path, rule):
    pytest.importorskip("xllamacpp")  # as above
    tokenizer = trained(rule)
    folder = make_model(tmp_path / "in", heads=8, vocab_size=tokenizer.get_vocab_size())
    tokenizer.save(str(folder / "tokenizer.json"))
    export(folder, ragged(8, 8), tmp_path / "out", options=ExportOptions(format="gguf", dtype="float32"))
    text = f"{TEXT} I'LL we've\tx = 10;\n\n\n   y  Ω≈ç √ 中文 🙂 The President of the United States 2016. "
    ran = subprocess.run(
        [sys.executable, RUNNER, tmp_path / "out", "5 6 7", "1", text], capture_output=True, text=True, timeout=120
    )
    line = next((line for line in ran.stdout.splitlines() if line.startswith("TEXT")), ran.stderr[-2000:])
    assert [int(t) for t in line.split()[1:]] == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_file_is_the_merge_in_its_dtype_and_the_same_twice(reader, tmp_path, dtype):
    layout = ragged(8, 8)
    for name in ("a", "b"):
        export(reader, layout, tmp_path / name, options=ExportOptions(format="gguf", dtype=dtype))
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()
    other = Regrouper(Checkpoint.open(reader)).merged(layout, MERGES["first"])
    with pytest.raises(GrouperError, match="differs from the merge"):
        check_file(tmp_path / "a" / FILE, layout, other, dtype)


def test_what_llama_cpp_cannot_hold_is_refused_by_name(reader, models, tmp_path):
    own = Grouping.from_labels(range(8))
    queries = HeadLayout((LayerLayout(own, own, Grouping.from_labels([0, 0, 1, 1, 2, 2, 3, 3])),) * 3, 8, 8, 16)
    windowed = add_tokenizer(make_model(tmp_path / "windowed", "mistral", 8, 8, vocab_size=4096, sliding_window=16))
    for folder, layout, dtype, why in (
        (reader, queries, "float32", "query projections"), (reader, ragged(8, 8), "int4", "int4"),
        (windowed, ragged(8, 8), "float32", "sliding window"), (models("llama"), ragged(8, 8), "float32",
        "tokenizer.json"),
    ):  # fmt: skip
        with pytest.raises(GrouperError, match=why):
            export(folder, layout, tmp_path / "out", options=ExportOptions(format="gguf", dtype=dtype))
        assert not (tmp_path / "out").exists()


def test_pre_tokenizers_are_known_by_their_rules():
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    plain = {**level, "use_regex": False}

    def split(pattern: str) -> dict:
        return {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}}, plain],
            }
        }

    assert pre_tokenizer({"pre_tokenizer": level}) == "gpt-2"
    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]}
    assert pre_tokenizer({"pre_tokenizer": digits}) == "smollm"
    assert pre_tokenizer(split(LLAMA3)) == "llama-bpe" and pre_tokenizer(split(r"\s+")) is None
    assert (
        pre_tokenizer({"pre_tokenizer": {"type": "Whitespace"}}) is None
        and pre_tokenizer({"pre_tokenizer": None}) is None
    )


def test_an_unknown_tokenizer_is_refused(reader, tmp_path):
    import shutil

    shutil.copytree(reader, tmp_path / "in")
    tokenizer = json.loads((tmp_path / "in" / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "in" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(GrouperError, match="splits text by a rule"):
        export(tmp_path / "in", ragged(8, 8), tmp_path / "out", options=ExportOptions(format="gguf"))
    (tmp_path / "in" / "tokenizer.json").write_text("{broken")
    with pytest.raises(GrouperError, match=r"tokenizer\.json is not JSON"):
        export(tmp_path / "in", ragged(8, 8), tmp_path / "out", options=ExportOptions(format="gguf"))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model", [], "has model"), ("model.type", ["BPE"], "of type"), ("model.vocab", [["a"]], "has model.vocab"),
        ("model.vocab", None, "has model.vocab None"), ("model.vocab", {"a": "0"}, "has model.vocab"),
        ("model.vocab", {"a": -1}, "has model.vocab"), ("model.vocab", {"a": 10**30}, "has model.vocab"),
        ("model.vocab", {"a": 10**6}, "do they go together"), ("model.merges", None, "has model.merges None"),
        ("model.merges", [5], "has model.merges"), ("model.merges", [["a", "b", "c"]], "has model.merges"),
        ("added_tokens", None, "has added_tokens None"), ("added_tokens", [None], "has added_tokens"),
        ("added_tokens", [{"content": "x"}], "has added_tokens"), ("added_tokens", [{"id": 0}], "has added_tokens"),
        ("pre_tokenizer", [5], "splits text by a rule"), ("pre_tokenizer", {"pretokenizers": 5}, "splits text by"),
        ("pre_tokenizer", {"pretokenizers": [{"type": "Split", "pattern": {"Regex": []}},
                                             {"type": "ByteLevel", "use_regex": False}]}, "splits text by a rule"),
        ("post_processor", [5], "special tokens"),
    ],
    ids=str,
)  # fmt: skip
def test_damaged_tokenizers_are_refused_in_one_line(reader, tmp_path, field, value, said):
    tokenizer = json.loads((Path(reader) / "tokenizer.json").read_text())
    parent, _, name = field.rpartition(".")
    (tokenizer[parent] if parent else tokenizer)[name] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    from gguf import GGUFWriter

    with pytest.raises(GrouperError, match=said) as refusal:
        add_tokenizer_to(GGUFWriter(tmp_path / "out.gguf", "deci"), tmp_path, 4096)
    assert len(str(refusal.value)) < 500


def test_llama3s_scaling_is_transformers():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        head_dim=32, hidden_size=64, num_attention_heads=2, rope_parameters=LLAMA31, max_position_embeddings=512
    )
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 5000.0 ** (-torch.arange(0, 32, 2) / 32)
    assert torch.allclose(plain / llama3_factors(LLAMA31, 32), frequencies, rtol=1e-5)
