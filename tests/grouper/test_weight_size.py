"""What a layout's weights take, beside what an export of it takes."""

import pytest
from family_samples import EQUAL, RAGGED, SAMPLES, layout_for

from grouper import Checkpoint, HeadLayout, export
from grouper.families.architecture import Architecture
from grouper.weight_size import weight_bytes

EXPORTED = [n for n in SAMPLES if n not in ("gpt_neox", "gptj", "falcon", "falcon-one-norm", "falcon-multi-head")]


@pytest.mark.parametrize("name", EXPORTED)
def test_it_is_what_the_export_takes(samples, name, tmp_path):
    checkpoint = Checkpoint.open(samples(name))
    a = Architecture.of(checkpoint.config)
    whole = HeadLayout.ungrouped(a.layers, a.query_heads, a.kv_heads, a.head_dim)
    assert weight_bytes(checkpoint, whole) == checkpoint.nbytes
    for kind, labels in {"equal": EQUAL, "ragged": RAGGED}.items():
        layout = layout_for(samples(name), labels)
        done = export(checkpoint, layout, tmp_path / kind, merge="mean")
        said = weight_bytes(checkpoint, layout)
        gains = sum(4 * a.head_dim * (a.kv_heads - layer.k.kv_heads) for layer in layout.layers)
        gains = gains if a.family.qk_norm == "all" else 0  # of a norm across K heads
        assert done.weight_bytes[1] == said - gains, kind


def test_k_v_and_shared_queries_are_counted_apart():
    """A Qwen2 of 8 query and 4 KV heads of 16 over 96: rows of 96 numbers and one of a bias, 4 bytes each."""
    from grouper import Grouping, LayerLayout

    k, v = Grouping.from_labels([0, 0, 1, 2], 2), Grouping.from_labels([0, 0, 0, 0], 2)
    queries = Grouping.from_labels([0, 0, 1, 1, 2, 2, 3, 3])
    row = 16 * (96 + 1) * 4
    for layer, saved in ((LayerLayout(k, v), 1 + 3), (LayerLayout(v, v, queries), 3 + 3 + 4)):
        layout = HeadLayout((layer,) * 2, 8, 4, 16)
        sizes = {"hidden_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}
        checkpoint = made("qwen2", sizes)
        assert weight_bytes(checkpoint, layout) == checkpoint.nbytes - 2 * saved * row


def made(model_type: str, sizes: dict) -> Checkpoint:
    """Headers alone: two layers of attention."""
    from types import SimpleNamespace

    d, D = 16, sizes["hidden_size"]
    rows = {"q": sizes["num_attention_heads"] * d, "k": sizes["num_key_value_heads"] * d}
    rows["v"] = rows["k"]
    tensors = {}
    for layer in range(2):
        for part, count in rows.items():
            stem = f"model.layers.{layer}.self_attn.{part}_proj"
            tensors[f"{stem}.weight"] = SimpleNamespace(shape=(count, D), nbytes=4 * count * D)
            tensors[f"{stem}.bias"] = SimpleNamespace(shape=(count,), nbytes=4 * count)
    checkpoint = Checkpoint.__new__(Checkpoint)
    checkpoint.__dict__ |= {"tensors": tensors, "_before": {"layers.0.": "model."}}
    checkpoint._config = {"model_type": model_type, "num_hidden_layers": 2, "head_dim": d, **sizes}
    checkpoint.__dict__["nbytes"] = sum(one.nbytes for one in tensors.values())
    return checkpoint


@pytest.mark.parametrize("name", ["bert", "vit-bare", "t5", "bart"])
def test_of_an_encoder_it_is_what_the_export_takes(encoders, tmp_path, name):
    from encoder_samples import architecture_of

    layout = architecture_of(encoders(name))
    rows = [[h % (2 + i % 3) for h in range(8)] for i in range(layout.layers)]
    layout = layout.layout(HeadLayout.from_labels(rows, 8, layout.head_dim).layers)
    checkpoint = Checkpoint.open(encoders(name))
    done = export(checkpoint, layout, tmp_path / "out")
    assert done.weight_bytes == (checkpoint.nbytes, weight_bytes(checkpoint, layout))
