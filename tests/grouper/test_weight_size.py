"""What a layout's weights take, beside what an export of it takes."""

import pytest
from family_samples import EQUAL, RAGGED, SAMPLES, layout_for

from grouper import Checkpoint, HeadLayout, export
from grouper.model.architecture import Architecture
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
