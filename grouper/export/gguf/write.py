"""Export to GGUF for llama.cpp, as the `deci` architecture: Llama's computation with head counts per layer.

llama.cpp requires equal groups within a layer, so groups are padded to the layer's largest with zero query heads. The
KV cache keeps each layer's own KV heads. Quantise with llama.cpp: `llama-quantize model.gguf ...`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from grouper.attention import PARTS, Attention, MergedLayer, Part
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.export.format import ExportOptions, Format, Job, Report, SelfTest, check_same_model
from grouper.export.gguf.check import check_file
from grouper.export.gguf.families import FAMILIES
from grouper.export.gguf.tokenizer import add_tokenizer, check_tokenizer
from grouper.export.hf.padded import padded_order
from grouper.export.hf.slots import Slots
from grouper.families.architecture import Architecture
from grouper.layout import HeadLayout
from grouper.names import printable
from grouper.progress import Progress

if TYPE_CHECKING:
    from gguf import GGUFWriter

FILE = "model.gguf"
DTYPES = ("float32", "float16", "bfloat16")
REST = {  # names of tensors outside attention, within a layer
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


LOADING = """```sh
llama-cli -m {place} -fa on
```
"""


@dataclass(frozen=True)
class GGUF(Format):
    """Format of a folder with model.gguf."""

    name: str = "gguf"
    library = "gguf"
    place_in_card = "."

    def check(self, checkpoint: Checkpoint, layout: HeadLayout, options: ExportOptions) -> None:
        check_same_model(checkpoint, layout)
        check_file_format(checkpoint, layout, options.dtype or checkpoint.dtype)

    def write(self, job: Job, folder: Path, facts: dict, progress: Progress) -> tuple[str, str | None]:
        write_gguf(job, folder / FILE, self.dtype(job), progress)
        return self.name, None

    def verify(self, job: Job, folder: Path, export_class: str) -> SelfTest:
        return check_file(folder / FILE, job.layout, job.merged, self.dtype(job))

    def dtype(self, job: Job) -> str:
        return job.options.dtype or job.checkpoint.dtype

    def weight_bytes(self, folder: Path) -> int:
        return (folder / FILE).stat().st_size

    def engines(self, architecture: Architecture, export_class: str) -> list[str]:
        return ["llama.cpp"]

    def loader(self, config: dict) -> str:
        return "llama.cpp"

    def how_to_load(self, report: Report, place: str) -> tuple[str, str]:
        file = FILE if place == "." else f"{place}/{FILE}"
        return f"llama-cli -m {file} -fa on", LOADING.format(place=file)


def check_file_format(checkpoint: Checkpoint, layout: HeadLayout, dtype: str) -> None:
    """Raise GrouperError for a model or layout that llama.cpp's deci architecture cannot represent."""
    config = checkpoint.config
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise GrouperError("`format=gguf` needs the gguf package: pip install 'kv-grouper[gguf]'") from error
    if dtype not in DTYPES:
        raise GrouperError(f"a GGUF of dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    a = Architecture.of(config)
    deci, instead = "llama.cpp's deci architecture", "use `format=hf`"
    if a.family.model_type not in FAMILIES or a.nested:
        kind = "vision-language" if a.nested else a.family.model_type
        raise GrouperError(f"{deci} holds {', '.join(FAMILIES)} models, not {kind} ones: {instead}")
    if any(layer.q for layer in layout.layers):
        raise GrouperError(f"this layout shares query projections, which no GGUF architecture does: {instead}")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise GrouperError(f"{deci} has no biases on o or the MLP, this model has: {instead}")
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        raise GrouperError(f"{deci} has no sliding window, this model has: {instead}")
    kind = rope(config).get("rope_type", "default")
    if kind not in ("default", "linear", "llama3"):
        raise GrouperError(f"RoPE scaling of type {kind!r} is not written as GGUF yet: {instead}")
    check_tokenizer(checkpoint.folder)


def rope(config: dict) -> dict:
    """Parameters of RoPE, whichever field of the configuration holds them."""
    scaling = config.get("rope_scaling") or {}
    found = {"rope_theta": config.get("rope_theta", 10000.0), **scaling, **(config.get("rope_parameters") or {})}
    return {**found, "rope_type": found.get("rope_type") or found.get("type") or "default"}


def write_gguf(job: Job, path: Path, dtype: str, progress: Progress) -> None:
    """Write the regrouped model to `path` as a stream, with one tensor in memory at a time."""
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants

    checkpoint = job.checkpoint
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    writer = GGUFWriter(path, "deci")
    _add_settings(writer, checkpoint, job.architecture, job.layout)
    writer.add_file_type(
        {"F32": LlamaFileType.ALL_F32, "F16": LlamaFileType.MOSTLY_F16, "BF16": LlamaFileType.MOSTLY_BF16}[kind]
    )
    embedding = checkpoint.tensors[
        "model.embed_tokens.weight" if "model.embed_tokens.weight" in checkpoint else "embed_tokens.weight"
    ]
    add_tokenizer(writer, checkpoint.folder, embedding.shape[0])

    def type_of(shape: tuple[int, ...]) -> GGMLQuantizationType:
        return GGMLQuantizationType.F32 if len(shape) == 1 else GGMLQuantizationType[kind]

    planned = list(_tensors(job))
    for name, shape, _ in planned:
        stored = type_of(shape)
        size = math.prod(shape) * (4 if stored == GGMLQuantizationType.F32 else 2)
        writer.add_tensor_info(
            name, shape, np.dtype(np.float32 if stored == GGMLQuantizationType.F32 else np.float16), size, stored
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (name, shape, tensor) in enumerate(_tensors(job), 1):
        numbers = tensor()
        if not torch.isfinite(numbers).all():
            raise GrouperError(f"{name} would hold NaN or infinity: the weights are damaged")
        writer.write_tensor_data(quants.quantize(numbers.float().numpy(), type_of(shape)))
        progress(done, len(planned), "writing tensors")
    writer.close()


def _add_settings(writer: "GGUFWriter", checkpoint: Checkpoint, a: Architecture, layout: HeadLayout) -> None:
    config, parameters = checkpoint.config, rope(checkpoint.config)
    kv_heads = [layer.k.kv_heads for layer in layout.layers]
    writer.add_name(printable(f"{checkpoint.title} regrouped"))
    writer.add_context_length(a.context)
    writer.add_embedding_length(a.hidden_size)
    writer.add_block_count(a.layers)
    writer.add_feed_forward_length([config["intermediate_size"]] * a.layers)
    writer.add_head_count([k * max(layer.k.sizes) for k, layer in zip(kv_heads, layout.layers)])
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(a.head_dim)
    writer.add_value_length(a.head_dim)
    writer.add_rope_dimension_count(a.head_dim)
    writer.add_rope_freq_base(float(parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if parameters["rope_type"] == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(parameters["factor"]))


Named = tuple[str, tuple[int, ...], Callable[[], Tensor]]


def _tensors(job: Job) -> Iterator[Named]:
    """Tensors of the file in order, as (name, shape, function that makes the tensor)."""
    checkpoint, a = job.checkpoint, job.architecture
    parameters = rope(checkpoint.config)
    prefix = "model." if "model.embed_tokens.weight" in checkpoint else ""
    outside = {f"{prefix}embed_tokens.weight": "token_embd.weight", f"{prefix}norm.weight": "output_norm.weight"}
    if "lm_head.weight" in checkpoint and not checkpoint.config.get("tie_word_embeddings"):
        outside["lm_head.weight"] = "output.weight"
    for name, new in outside.items():
        read = partial(checkpoint.tensor, name) if name not in job.around else partial(job.around.__getitem__, name)
        yield new, tuple(checkpoint.tensors[name].shape), read
    if parameters["rope_type"] == "llama3":
        factors = llama3_factors(parameters, a.head_dim)
        yield "rope_freqs.weight", tuple(factors.shape), lambda: factors
    for layer in range(a.layers):
        yield from _layer(job, layer, cache(partial(job.merged, layer)))


def _layer(job: Job, layer: int, done: Callable[[], MergedLayer]) -> Iterator[Named]:
    """Tensors of a layer, as (name, shape, function that makes the tensor). done: merges the layer, once."""
    checkpoint, a, layout = job.checkpoint, job.architecture, job.layout.layers[layer]
    here, block = a.prefix(checkpoint, layer), f"blk.{layer}."

    def outside(name: str) -> Tensor:
        return done().others.get(name, checkpoint.tensor(here + name))

    @cache
    def padded() -> Attention:
        """Attention with its groups padded by zero heads."""
        return padded_order(done().attention, layout, Slots(layout.k.kv_heads, max(layout.k.sizes)))

    for name, new in REST.items():
        shape = tuple(checkpoint.tensors[f"{here}{name}.weight"].shape)
        yield f"{block}{new}.weight", shape, partial(outside, f"{name}.weight")
    groups, d = layout.k.kv_heads, a.head_dim
    queries = groups * max(layout.k.sizes)
    biased = f"{here}{a.family.storage.q}.bias" in checkpoint
    for part, count in zip(PARTS, (queries, groups, groups)):
        yield f"{block}attn_{part}.weight", (count * d, a.hidden_size), partial(_weight, padded, part)
        if biased:
            yield f"{block}attn_{part}.bias", (count * d,), partial(_bias, padded, part)
    yield f"{block}attn_output.weight", (a.hidden_size, queries * d), lambda: padded().o.flatten(1)


def _weight(attention: Callable[[], Attention], part: Part) -> Tensor:
    return _rows(attention().projection(part).weight, part)


def _bias(attention: Callable[[], Attention], part: Part) -> Tensor:
    return _rows(attention().projection(part).shift, part)


def _rows(tensor: Tensor, part: str) -> Tensor:
    """Rows [heads d, ...] of q, k or v, or of its bias [heads, d, ...]. Rows of q and k are in the order of llama.cpp's
    RoPE, which rotates neighbouring rows together."""
    if part != "v":
        tensor = tensor.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return tensor.flatten(0, 1)


def llama3_factors(parameters: dict, head_dim: int) -> Tensor:
    """Divisors of RoPE's frequencies for Llama 3's scaling, as llama.cpp stores them [head_dim / 2]."""
    base, factor = float(parameters["rope_theta"]), float(parameters["factor"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    original = float(parameters["original_max_position_embeddings"])
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    wavelengths = 2 * math.pi / frequencies
    smooth = (original / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    scaled = torch.where(wavelengths > original / low, torch.full_like(between, factor), between)
    return torch.where(wavelengths < original / high, torch.ones_like(scaled), scaled).float()
