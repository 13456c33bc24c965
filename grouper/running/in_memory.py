"""Transformers model whose attention weights can be exchanged layer by layer, to measure layouts without writing them.

Weights are installed in expanded form, with one K and one V head per query head. Any layout therefore runs in any
class, and the KV cache is not affected. Never save such a model; write layouts with `export`.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from grouper.attention import Attention, Merged, MergedLayer
from grouper.checkpoint.checkpoint import Checkpoint, decoder_prefix
from grouper.errors import GrouperError, as_one_line
from grouper.families.architecture import Architecture
from grouper.families.configuration import decoder_config
from grouper.layout import HeadLayout, LayerLayout
from grouper.model.auto import auto_class
from grouper.model.loading import load
from grouper.running.layers import Layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class InMemoryModel(Layers):
    """Model in memory. `model` is the transformers model; `installed` exchanges weights of layers temporarily."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", dtype: torch.dtype = torch.float32):
        self.checkpoint = checkpoint.local()
        self.architecture = Architecture.of(checkpoint.config)
        self.device, self.dtype = device, dtype
        options: dict[str, Any] = in_double(checkpoint.config) if dtype == torch.float64 else {}
        options |= {"device_map": {"": device}} if "cuda" in device else {}
        with as_one_line(f"transformers cannot load {checkpoint.name}"):
            self.model, loading = load(
                auto_class(checkpoint.config), self.checkpoint.folder,
                dtype=dtype, use_safetensors=True, output_loading_info=True, **options,
            )  # fmt: skip
        check_loaded(checkpoint.name, loading)
        self.model.eval().requires_grad_(False)
        names = (name for name, _ in self.model.named_parameters())
        self.prefix = decoder_prefix(names, self.architecture.family_of(0).in_class.layer.format(layer=0))

    @contextmanager
    def loaded(self, layer: int) -> Iterator[nn.Module]:
        yield self.layer(layer)

    @contextmanager
    def installed(self, layout: HeadLayout | Mapping[int, LayerLayout], merged: Merged) -> Iterator["PreTrainedModel"]:
        """The transformers model, computing with these weights until the block ends.

        layout: of the whole model, or of some layers by number. merged(layer): weights of that layer. Blocks may be
        nested; each one restores the weights that it found.
        """
        layers = dict(enumerate(layout.layers)) if isinstance(layout, HeadLayout) else layout
        with ExitStack() as stack:
            for layer, layer_layout in layers.items():
                stack.enter_context(exchanged(self, layer, self.layer(layer), merged(layer), layer_layout))
            yield self.model


def check_loaded(name: str, loading: dict) -> None:
    """Raise GrouperError if transformers initialised weights that the checkpoint lacks, or could not use some. A
    missing pooler is allowed, since many encoders are published without one and attention does not depend on it."""
    for what in ("missing_keys", "mismatched_keys"):
        wrong = sorted(str(key) for key in loading.get(what) or () if "pooler." not in str(key))
        if wrong:
            kind = what.replace("_", " ")
            raise GrouperError(f"{name} is incomplete or damaged: {len(wrong)} {kind}, among them {wrong[0]}")


@contextmanager
def exchanged(
    model: Layers, layer: int, block: nn.Module, merged: MergedLayer, layout: LayerLayout
) -> Iterator[nn.Module]:
    """The model's layer that contains this attention, computing with these weights until the block ends."""
    a, family = model.architecture, model.architecture.family_of(layer)
    path = family.in_class.attention
    attention = block.get_submodule(path)
    others = {family.class_name(name): tensor for name, tensor in merged.others.items()}
    before = {name: block.get_parameter(name).data for name in others}
    try:
        block.set_submodule(path, expanded_attention(a, attention, layout, model.device, model.dtype, layer))
        for name, tensor in (expanded_tensors(a, merged.attention, layout, layer) | others).items():
            block.get_parameter(name).data = tensor.to(model.device, model.dtype).contiguous()
        yield block
    finally:
        block.set_submodule(path, attention)
        for name, data in before.items():
            block.get_parameter(name).data = data


def expanded_attention(
    architecture: Architecture,
    attention: nn.Module,
    layout: LayerLayout,
    device: str | torch.device,
    dtype: torch.dtype,
    layer: int = 0,
) -> nn.Module:
    """Shallow copy of an attention module whose projections have room for one q, K and V head per attention output. Its
    weights are not yet set.

    If a norm spans all K heads, k_proj has only the layout's heads: the norm applies to these, and its output is
    expanded.
    """
    a, f = architecture, architecture.family_of(layer).in_class
    new = _shallow_copy(attention)
    outputs = a.query_heads * a.head_dim
    keys = layout.k.kv_heads * a.head_dim if f.qk_norm == "all" else outputs
    rows = {**f.storage.rows(outputs, keys, outputs), f.storage.o: None}
    for path, out_features in rows.items():
        *within, name = path.removeprefix(f"{f.attention}.").split(".")
        owner = new
        for part in within:  # modules on the way are copied too
            setattr(owner, part, _shallow_copy(getattr(owner, part)))
            owner = getattr(owner, part)
        old = getattr(owner, name)
        if f.transposed or out_features is None:  # same size as before
            setattr(owner, name, _emptied(old, device, dtype))
        else:
            linear = nn.Linear(a.hidden_size, out_features, bias=old.bias is not None, device="meta")
            setattr(owner, name, _emptied(linear, device, dtype))
    counts = {"num_key_value_groups": 1, "num_key_value_heads": a.query_heads, "num_kv_heads": a.query_heads}
    for name, value in counts.items():
        if hasattr(new, name):
            setattr(new, name, value)
    if f.sinks is not None:
        name = f.sinks.rpartition(".")[2]
        empty = torch.empty(a.query_heads, device=device, dtype=dtype)
        new._parameters[name] = nn.Parameter(empty, requires_grad=False)
    if f.qk_norm == "all":
        q_name, k_name = (name.removeprefix(f"{f.attention}.") for name in f.norms_of_qk)
        q_norm, k_norm = attention.get_submodule(q_name), attention.get_submodule(k_name)
        norm = k_norm.norm if isinstance(k_norm, _NormThenExpand) else k_norm
        setattr(new, q_name, _emptied(q_norm, device, dtype))
        setattr(new, k_name, _NormThenExpand(_emptied(norm, device, dtype), layout, a.head_dim))
    return new


def expanded_tensors(
    architecture: Architecture, attention: Attention, layout: LayerLayout, layer: int = 0
) -> dict[str, torch.Tensor]:
    """Tensors of such a module, by name within the layer; gradients flow through."""
    whole, family = attention.expanded(layout), architecture.family_of(layer)
    if architecture.family.qk_norm != "all":
        return {family.class_name(n): t for n, t in architecture.tensors("", whole, layer)}
    whole.k, whole.k_bias, whole.k_norm = attention.k, attention.k_bias, attention.k_norm
    named = dict(architecture.tensors("", whole))
    inner = architecture.norm_modules[1]
    return {n.replace(f"{inner}.", f"{inner}.norm."): t for n, t in named.items()}


class _NormThenExpand(nn.Module):
    """Norm across the existing K heads, followed by a copy for each query head."""

    def __init__(self, norm: nn.Module, layout: LayerLayout, head_dim: int):
        super().__init__()
        self.norm, self.index, self.head_dim = norm, layout.k.group_of.tolist(), head_dim

    def forward(self, keys: torch.Tensor) -> torch.Tensor:
        return self.norm(keys).unflatten(-1, (-1, self.head_dim))[..., self.index, :].flatten(-2)


def _shallow_copy(module: nn.Module) -> nn.Module:
    """Copy with its own attributes and its own references to children; the children are the same."""
    new = object.__new__(type(module))
    new.__dict__.update(module.__dict__)
    for name in ("_parameters", "_buffers", "_modules"):
        new.__dict__[name] = dict(module.__dict__[name])
    return new


def _emptied(module: nn.Module, device: str | torch.device, dtype: torch.dtype) -> nn.Module:
    """Module of the same kind with uninitialised parameters of its own."""
    new = _shallow_copy(module)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            new._parameters[name] = nn.Parameter(
                torch.empty(parameter.shape, device=device, dtype=dtype), requires_grad=False
            )
    return new


def in_double(config: dict) -> dict[str, str]:
    """Arguments of from_pretrained for a model in float64, which grouped kernels for experts do not support."""
    return {"experts_implementation": "eager"} if any("experts" in key for key in decoder_config(config)) else {}
