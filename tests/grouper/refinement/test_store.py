"""Layers on disk, with all that an attention may have."""

import math

import pytest
import torch

from grouper.attention import Attention, MergedLayer
from grouper.refinement.store import LayerStore, load_layer, save_layer


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


@pytest.mark.parametrize("kept", ["in memory", "in a folder"])
def test_layers_are_made_once_and_kept(tmp_path, kept):
    made: list[int] = []

    def make(layer: int) -> MergedLayer:
        made.append(layer)
        return MergedLayer(whole())

    store = LayerStore(tmp_path if kept == "in a folder" else None, make)
    assert (
        3 not in store and torch.equal(store(3).attention.q, whole().q) and torch.equal(store(3).attention.k, whole().k)
    )
    assert made == [3] and 3 in store and 2 not in store
    assert [p.name for p in tmp_path.iterdir()] == (["layer-003.safetensors"] if kept == "in a folder" else [])
    assert all(map(math.isnan, (*store.errors(3), store(3).before))), "it was not refined"
    store.keep(1, MergedLayer(whole(), {}, 0.5, 0.25))
    assert store.errors(1) == (0.5, 0.25) and store(1).after == 0.25 and made == [3]
    with pytest.raises(KeyError):
        LayerStore(tmp_path / "none")(0)
