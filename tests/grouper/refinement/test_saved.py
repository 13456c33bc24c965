"""Layers on disk, with all that an attention may have."""

import math

import torch

from grouper.attention import Attention, MergedLayer
from grouper.refinement.saved import LayersInMemory, SavedLayers, load_layer, save_layer


def whole(qk_norm: str | None = "all") -> Attention:
    """Every field set."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(heads, 4, 6, generator=g) for heads in (4, 2, 2))
    o = torch.randn(6, 4, 4, generator=g)
    biases = [torch.randn(*shape, generator=g) for shape in ((4, 4), (2, 4), (2, 4), (6,))]
    gains = [torch.randn(heads, 4, generator=g) for heads in (4, 2)]
    sinks, planes = torch.randn(4, generator=g), torch.tensor([[0, 2], [1, 3]])
    return Attention(q, k, v, o, *biases, *gains, sinks=sinks, planes=planes, qk_norm=qk_norm)


def test_every_field_of_a_layer_is_read_as_it_was_written(tmp_path):
    for qk_norm in ("all", "head", None):
        path = tmp_path / "kept" / f"{qk_norm}.safetensors"
        save_layer(path, MergedLayer(whole(qk_norm), {"mlp.weight": torch.ones(3, 2).T}, 0.1, 1 / 3))
        again = load_layer(path)
        fields = vars(whole())
        assert all(getattr(again.attention, n) is not None for n in fields if n != "qk_norm")
        for name, tensor in vars(whole(qk_norm)).items():
            kept = getattr(again.attention, name)
            assert kept == tensor if name == "qk_norm" else torch.equal(kept, tensor), name
        assert (again.before, again.after) == (0.1, 1 / 3)
        assert list(again.others) == ["mlp.weight"] and torch.equal(again.others["mlp.weight"], torch.ones(2, 3))


def test_a_layer_that_was_not_refined_has_no_errors(tmp_path):
    saved = SavedLayers(tmp_path, lambda layer: MergedLayer(whole()))
    saved(3)
    assert saved.path(3).name == "layer-003.safetensors" and all(map(math.isnan, saved.errors(3)))
    assert all(map(math.isnan, (saved(3).before, saved(3).after)))
    memory = LayersInMemory({1: MergedLayer(whole(), {}, 0.5, 0.25)})
    assert memory.errors(1) == (0.5, 0.25) and memory(1) is memory[1]
