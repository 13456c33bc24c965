"""What a GGUF says of itself, read back by the gguf package and compared with the configuration and tokenizer."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from gguf import GGUFReader, quants
from tiny_models import add_tokenizer, edit_weights, make_model
from transformers import AutoModelForCausalLM

from grouper import Checkpoint, ExportOptions, GrouperError, HeadLayout, export
from grouper.compress import Regrouper
from grouper.export.gguf.check import check_file
from grouper.export.gguf.tokenizer import add_tokenizer as add_gguf_tokenizer
from grouper.export.gguf.tokenizer import pre_tokenizer
from grouper.export.gguf.write import FILE, GGUF, check_file_format, rope
from grouper.merging import MERGES

LAYOUT = HeadLayout.from_labels([[0, 0, 0, 1], [0, 1, 2, 1], [0, 0, 1, 1]], 8, 16)  # 2, 3 and 2 KV heads
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def make(folder, family: str = "llama", **more):
    return add_tokenizer(make_model(folder, family, 8, 4, vocab_size=4096, rms_norm_eps=0.0625, **more))


def written(folder, out, dtype: str = "float32", **more) -> GGUFReader:
    options = ExportOptions(format="gguf", dtype=dtype)
    assert export(folder, LAYOUT, out, options=options, **more).engines == ["llama.cpp"]
    return GGUFReader(out / FILE)


def value(reader: GGUFReader, key: str):
    return reader.fields[key].contents()


def tensor(reader: GGUFReader, name: str) -> torch.Tensor:
    found = next(t for t in reader.tensors if t.name == name)
    shape = tuple(map(int, reversed(found.shape)))
    return torch.from_numpy(quants.dequantize(found.data, found.tensor_type).copy()).reshape(shape)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(model, its GGUF)"""
    place = tmp_path_factory.mktemp("gguf")
    written(make(place / "in"), place / "out")
    return place / "in", place / "out"


def test_settings_are_the_models(tmp_path):
    """head_dim is not hidden_size / heads here: 8 heads of 16 over a stream of 64."""
    reader = written(make(tmp_path / "in", rope_parameters=LINEAR), tmp_path / "out", "bfloat16")
    wanted = {
        "general.architecture": "deci", "general.name": f"{Checkpoint.open(tmp_path / 'in').title} regrouped",
        "general.file_type": 32,  # MOSTLY_BF16 in llama.h
        "deci.context_length": 256, "deci.embedding_length": 64, "deci.block_count": 3,
        "deci.feed_forward_length": [96] * 3, "deci.vocab_size": 4096,
        # groups of 6 and 2 query heads, then of 2, 4 and 2, then of 4 and 4: filled up to the largest
        "deci.attention.head_count": [2 * 6, 3 * 4, 2 * 4], "deci.attention.head_count_kv": [2, 3, 2],
        "deci.attention.key_length": 16, "deci.attention.value_length": 16, "deci.rope.dimension_count": 16,
        "deci.rope.freq_base": 5000.0, "deci.attention.layer_norm_rms_epsilon": 0.0625,
        "deci.rope.scaling.type": "linear", "deci.rope.scaling.factor": 4.0,
    }  # fmt: skip
    assert {key: value(reader, key) for key in wanted} == wanted
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    vectors = {name for name, kind in kinds.items() if kind == "F32"}
    assert set(kinds.values()) == {"F32", "BF16"} and vectors == {
        "output_norm.weight", *(f"blk.{i}.{n}_norm.weight" for i in range(3) for n in ("attn", "ffn"))
    }  # fmt: skip


def test_file_types_are_llama_cpps(plain, tmp_path):
    folder, out = plain
    for reader, number in ((GGUFReader(out / FILE), 0), (written(folder, tmp_path / "half", "float16"), 1)):
        assert value(reader, "general.file_type") == number
        assert not [key for key in reader.fields if "rope.scaling" in key], "nothing is scaled"


def test_what_stands_around_attention_is_the_checkpoints_or_what_training_made_of_it(tmp_path):
    """Norms with a gain each, so that two of them cannot change places; one layer's others and the embedding and the
    last norm as if they had been trained."""

    def gains(tensors) -> None:
        for name in (n for n in tensors if n.endswith("norm.weight")):
            tensors[name] = torch.rand(64, generator=torch.Generator().manual_seed(len(name)))

    plain = make(tmp_path / "plain", tie_word_embeddings=False)
    folder = edit_weights(plain, tmp_path / "in", gains)
    checkpoint = Checkpoint.open(folder)
    start = Regrouper(checkpoint).merged(LAYOUT, MERGES["mean"])
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    others = {f"{n}.weight": checkpoint.tensor(f"model.layers.1.{n}.weight") + 1 for n in names}
    around = {n: checkpoint.tensor(n) * 2 for n in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")}
    reader = written(
        folder, tmp_path / "out", merged=lambda i: replace(start(i), others=others) if i == 1 else start(i),
        around=around,
    )  # fmt: skip
    for theirs, ours in names.items():
        for layer in range(3):
            wanted = checkpoint.tensor(f"model.layers.{layer}.{theirs}.weight") + (layer == 1)
            assert torch.equal(tensor(reader, f"blk.{layer}.{ours}.weight"), wanted), (layer, ours)
    for theirs, ours in (("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")):
        assert torch.equal(tensor(reader, f"{ours}.weight"), 2 * checkpoint.tensor(f"{theirs}.weight"))


def test_a_head_that_is_tied_is_left_out_even_where_it_is_stored(tmp_path):
    """llama.cpp takes the embedding where there is no output.weight; a stored copy may be stale."""

    def stale(tensors) -> None:
        tensors["lm_head.weight"] = torch.zeros_like(tensors["model.embed_tokens.weight"])

    tied = edit_weights(make(tmp_path / "plain", tie_word_embeddings=True), tmp_path / "tied", stale)
    assert "output.weight" not in {t.name for t in written(tied, tmp_path / "out").tensors}


def test_llama_3s_factors_are_in_the_file_and_no_others_scaling(tmp_path):
    reader = written(make(tmp_path / "in", rope_parameters=LLAMA3), tmp_path / "out")
    factors = tensor(reader, "rope_freqs.weight")
    # wavelengths 2 pi 5000^(i / 8): the last ones are longer than 64 tokens, the first shorter than 64 / 4
    assert factors.shape == (8,) and factors[0] == 1 and factors[-1] == 8 and factors.tolist() == sorted(factors)
    assert not [key for key in reader.fields if "rope.scaling" in key]


def test_rope_is_found_wherever_a_configuration_keeps_it():
    assert rope({}) == {"rope_theta": 10000.0, "rope_type": "default"}
    old = {"rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert rope(old) == {"rope_theta": 7.0, "type": "linear", "factor": 2.0, "rope_type": "linear"}
    assert rope({"rope_theta": 7.0, "rope_scaling": None})["rope_theta"] == 7.0
    new = rope({"rope_theta": 7.0, "rope_parameters": {"rope_theta": 9.0, "rope_type": "llama3"}})
    assert new == {"rope_theta": 9.0, "rope_type": "llama3"}


@pytest.mark.parametrize(
    ("family", "more", "why"),
    [
        ("llama", {"attention_bias": True}, "no biases on o or the MLP"),
        ("llama", {"mlp_bias": True}, "no biases on o or the MLP"),
        ("llama", {"rope_parameters": {**LINEAR, "rope_type": "yarn"}}, "scaling of type 'yarn'"),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True}, "no sliding window"),
        ("qwen3", {}, "holds llama, mistral, qwen2 models, not qwen3 ones"),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, None),
    ],
)
def test_what_deci_cannot_hold(reader, family, more, why):
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64, "num_hidden_layers": 3}
    checkpoint = Checkpoint.open(reader)
    checkpoint._config = {"model_type": family, "head_dim": 16, "rms_norm_eps": 1e-5, **sizes, **more}
    if why is None:
        check_file_format(checkpoint, LAYOUT, "float32")
        return
    with pytest.raises(GrouperError, match=why):
        check_file_format(checkpoint, LAYOUT, "float32")


def test_decoders_in_larger_models_are_refused(reader):
    text = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64,
            "head_dim": 16, "num_hidden_layers": 3}  # fmt: skip
    checkpoint = Checkpoint.open(reader)
    checkpoint._config = {"model_type": "llava", "text_config": text}
    with pytest.raises(GrouperError, match="not vision-language ones"):
        check_file_format(checkpoint, LAYOUT, "float32")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("blk.0.attn_k.weight", 3), ("blk.1.attn_v.weight", 20), ("blk.0.attn_q.weight", 5),
        ("blk.0.attn_q.weight", 8 * 16), ("blk.2.attn_output.weight", 2),
    ],
)  # fmt: skip
def test_one_number_that_is_wrong_is_found(plain, tmp_path, name, row):
    """In K, V, q, a slot that only fills a group up (the second group of layer 0 has two readers of six), and o."""
    folder, out = plain
    merged = Regrouper(Checkpoint.open(folder)).merged(LAYOUT, MERGES["mean"])
    file = tmp_path / FILE
    shutil.copyfile(out / FILE, file)
    found = next(t for t in GGUFReader(file, "r+").tensors if t.name == name)
    found.data[row, 1] += 0.5
    found.data.flush()
    with pytest.raises(GrouperError, match=r"differs from the merge by 0\.5"):
        check_file(file, LAYOUT, merged, "float32")


# Tokenizers


class Noted:
    """A GGUFWriter that keeps what it is told: {"add_token_list": (...), ...}."""

    def __init__(self):
        self.told = {}

    def __getattr__(self, name):
        return lambda *given: self.told.__setitem__(name, given[0] if len(given) == 1 else given)


ADDED = [
    {"id": 0, "content": "<unk>", "special": True}, {"id": 9, "content": "<|turn|>", "special": True},
    {"id": 10, "content": "<tool>", "special": False}, {"id": 40, "content": "beyond", "special": True},
]  # fmt: skip
WORDS = ["<unk>", "<s>", "</s>", "<0x0A>", "a", "b", "ab", "abb", "<0xy>"]
MERGED = [["a", "b"], ["ab", "b"], ["b", "b"], ["a", "bb"]]  # abb in two ways


def noted(folder, model: dict, **more) -> dict:
    folder.mkdir()
    model = {"type": "BPE", "vocab": {w: i for i, w in enumerate(WORDS)}, "merges": MERGED, **model}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": ADDED, **more}))
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    writer = Noted()
    add_gguf_tokenizer(writer, folder, 12)
    return writer.told


def test_a_sentencepiece_tokenizer(tmp_path):
    """Kinds are llama.h's: 1 normal, 3 control, 4 the user's, 5 unused, 6 a byte. The sooner a token is merged, the
    larger its score; what is merged in two ways is merged by the sooner one; what is not merged comes last."""
    told = noted(tmp_path / "a", {"byte_fallback": True})
    assert told["add_tokenizer_model"] == "llama" and "add_token_merges" not in told
    assert told["add_token_list"] == [*WORDS, "<|turn|>", "<tool>", "[PAD11]"]
    assert told["add_token_types"] == [3, 1, 1, 6, 1, 1, 1, 1, 1, 3, 4, 5]
    assert told["add_token_scores"] == [-4, -4, -4, -4, -4, -4, 0, -1, -4, -4, -4, -4]
    assert (told["add_bos_token_id"], told["add_eos_token_id"]) == (1, 2)


@pytest.mark.parametrize("pairs", [True, False])
def test_a_byte_level_tokenizer(tmp_path, pairs):
    merges = MERGED if pairs else [" ".join(pair) for pair in MERGED]
    told = noted(tmp_path / "a", {"merges": merges}, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False})
    assert (told["add_tokenizer_model"], told["add_tokenizer_pre"]) == ("gpt2", "gpt-2")
    assert told["add_token_merges"] == ["a b", "ab b", "b b", "a bb"] and "add_token_scores" not in told
    assert told["add_token_list"][8:] == ["<0xy>", "<|turn|>", "<tool>", "[PAD11]"]
    assert told["add_token_types"] == [3, 1, 1, 1, 1, 1, 1, 1, 1, 3, 4, 5], "bytes are letters there"


@pytest.mark.parametrize(
    "steps",
    [
        [{"type": "ByteLevel", "add_prefix_space": True}],
        [{"type": "ByteLevel", "use_regex": False}],
        [{"type": "Digits", "individual_digits": False}, {"type": "ByteLevel"}],
        [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": False}],
        [{"type": "Digits", "individual_digits": True}],
    ],
)
def test_rules_that_llama_cpp_does_not_have(steps):
    assert pre_tokenizer({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}) is None


def test_a_gguf_of_its_own_type_and_how_it_is_run(tmp_path):
    """bfloat16 as the model is, unless another type is asked for."""
    model = AutoModelForCausalLM.from_pretrained(
        make(tmp_path / "plain"), dtype=torch.bfloat16, trust_remote_code=False
    )
    model.save_pretrained(tmp_path / "in")
    add_tokenizer(tmp_path / "in")
    done = export(tmp_path / "in", LAYOUT, tmp_path / "out", options=ExportOptions(format="gguf"))
    assert value(GGUFReader(tmp_path / "out" / FILE), "general.file_type") == 32
    assert done.weight_bytes[1] == (tmp_path / "out" / FILE).stat().st_size
    assert (done.loader, done.engines, done.export_class) == ("llama.cpp", ["llama.cpp"], "gguf")
    assert GGUF().how_to_load(done, "some/place")[0] == "llama-cli -m some/place/model.gguf -fa on"
    line, markdown = GGUF().how_to_load(done, ".")
    assert line == "llama-cli -m model.gguf -fa on" and f"```sh\n{line}\n```" in markdown


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    def damage(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = float("nan")

    folder = edit_weights(make(tmp_path / "in"), tmp_path / "damaged", damage)
    layout = HeadLayout.from_labels([[0, 0, 1, 1]] * 3, 8, 16)
    with pytest.raises(GrouperError, match=r"blk\.1\.ffn_up\.weight would hold NaN or infinity"):
        export(folder, layout, tmp_path / "out", options=ExportOptions(format="gguf"))
    assert not (tmp_path / "out").exists()
