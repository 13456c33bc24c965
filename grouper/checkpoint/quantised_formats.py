"""Formats of quantised weights that are read tensor by tensor: FP8, MXFP4, GPTQ and AWQ.

Each reader gets the headers, a loader of tensors and config.json, and gives the names of the model's own tensors with
loaders of their values. Weights come in bfloat16.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from grouper.checkpoint.header import TensorInfo
from grouper.errors import GrouperError
from grouper.parsing import shown

if TYPE_CHECKING:
    import torch

SCALES = ("_scale_inv", "_scale")  # after the name of an FP8 weight
BLOCKS, EXPONENTS = "_blocks", "_scales"  # after the name of an MXFP4 weight
PACKED = ("qweight", "qzeros", "scales", "g_idx")  # instead of a linear layer's `weight`, under GPTQ and AWQ
AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # of a row's next 8 numbers among the 4-bit pieces of an int32
Headers = dict[str, TensorInfo]
Get = Callable[[str], "torch.Tensor"]
Named = Iterator[tuple[str, Callable[[], "torch.Tensor"]]]


def fp8(tensors: Headers, get: Get, config: dict) -> Named:
    """Tensors of an FP8 model. A weight has a scale for each block of weight_block_size, or one
    scale; scales of activations are dropped."""
    block = config["quantization_config"].get("weight_block_size")

    def loaded(name: str) -> "torch.Tensor":
        scale = next((name + end for end in SCALES if name + end in tensors), None)
        return get(name) if scale is None else scaled(get(name), get(scale), block)

    for name in tensors:
        of_weight = any(name.endswith(end) and name.removesuffix(end) in tensors for end in SCALES)
        if not of_weight and not name.endswith((".input_scale", ".activation_scale")):
            yield name, partial(loaded, name)


def scaled(weight: "torch.Tensor", scale: "torch.Tensor", block: list[int] | None) -> "torch.Tensor":
    """Weight [..., rows, columns] times the scales of its blocks, in bfloat16. scale: [..., n, m], or one number. Bytes
    are exponents of 2, above 127."""
    import torch

    factors = (scale.float() - 127).exp2() if scale.dtype == torch.uint8 else scale.float()
    if factors.numel() > 1 and block:
        check_blocks(weight, factors, block)
        for dim, size in zip((-2, -1), block):  # the last block may be smaller
            factors = factors.repeat_interleave(min(size, weight.shape[dim]), dim).narrow(dim, 0, weight.shape[dim])
    return (weight.float() * factors).bfloat16()


def check_blocks(weight: "torch.Tensor", factors: "torch.Tensor", block: object) -> None:
    """Raise GrouperError if the scales are not one for each block of the weight."""
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        raise GrouperError(f"weight_block_size {shown(block)}: expected two numbers above 0")
    wanted = [*weight.shape[:-2], *(-(-n // size) for n, size in zip(weight.shape[-2:], block))]
    if list(factors.shape) != wanted:
        raise GrouperError(f"scales of shape {list(factors.shape)}: expected {wanted}, one for each block of {block}")


def mxfp4(tensors: Headers, get: Get, config: dict) -> Named:
    """Tensors of an MXFP4 model, with blocks of 32 numbers of 4 bits and one exponent each."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    def unpacked(whole: str) -> "torch.Tensor":
        return convert_moe_packed_tensors(get(whole + BLOCKS), get(whole + EXPONENTS))

    for name in tensors:
        whole = name.removesuffix(BLOCKS)
        if whole != name and whole + EXPONENTS in tensors:
            yield whole, partial(unpacked, whole)
        elif not (name.endswith(EXPONENTS) and name.removesuffix(EXPONENTS) + BLOCKS in tensors):
            yield name, partial(get, name)


def gptq(tensors: Headers, get: Get, config: dict) -> Named:
    """Tensors of a GPTQ model: numbers packed along the inputs, a zero and a scale for each group of inputs and each
    output. Zeros of the format `gptq` are stored one too low, those of `gptq_v2` as they are."""
    scheme = config["quantization_config"]
    bits, group, later = scheme.get("bits"), scheme.get("group_size"), scheme.get("checkpoint_format") == "gptq_v2"
    if bits not in (2, 4, 8):
        raise GrouperError(f"GPTQ of {bits} bits is not read: expected 2, 4 or 8")

    def weight(layer: str) -> "torch.Tensor":
        import torch

        codes = unpacked(get(f"{layer}.qweight").T, bits).T  # [inputs, outputs]
        zeros = unpacked(get(f"{layer}.qzeros"), bits)  # [groups, outputs]
        zeros = zeros if later else (zeros + 1) & (2**bits - 1)
        if f"{layer}.g_idx" in tensors:
            of_input = get(f"{layer}.g_idx").long()
        else:
            of_input = torch.arange(len(codes)) // (group if group and group > 0 else len(codes))
        return shifted(codes, zeros[of_input], get(f"{layer}.scales")[of_input])

    return _packed(tensors, get, weight)


def awq(tensors: Headers, get: Get, config: dict) -> Named:
    """Tensors of an AWQ model of the version `gemm`: 4-bit numbers, packed along the outputs in an order of its own."""
    scheme = config["quantization_config"]
    bits, version = scheme.get("bits", 4), str(scheme.get("version") or "gemm").lower()
    if bits != 4 or version != "gemm":
        raise GrouperError(f"AWQ of {bits} bits in version {version} is not read: expected 4 and gemm")

    def weight(layer: str) -> "torch.Tensor":
        codes, zeros = (unpacked(get(f"{layer}.{name}"), 4, AWQ_PLACES) for name in ("qweight", "qzeros"))
        scales, group = get(f"{layer}.scales"), len(codes) // len(zeros)
        return shifted(codes, zeros.repeat_interleave(group, 0), scales.repeat_interleave(group, 0))

    return _packed(tensors, get, weight)


def unpacked(numbers: "torch.Tensor", bits: int, places: tuple[int, ...] | None = None) -> "torch.Tensor":
    """Numbers of a few bits from int32 [rows, columns]: [rows, columns * 32 / bits]. places: where the numbers stand in
    an int32, from its low end on (default: in order)."""
    import torch

    shifts = torch.tensor([bits * place for place in places or range(32 // bits)])
    return ((numbers[..., None] >> shifts) & (2**bits - 1)).flatten(-2)


def shifted(codes: "torch.Tensor", zeros: "torch.Tensor", scales: "torch.Tensor") -> "torch.Tensor":
    """Weight [outputs, inputs] in bfloat16 of codes [inputs, outputs]."""
    return ((codes - zeros).float() * scales.float()).T.bfloat16()


def _packed(tensors: Headers, get: Get, weight: Callable[[str], "torch.Tensor"]) -> Named:
    layers = {name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")}
    for name in tensors:
        layer, _, last = name.rpartition(".")
        if layer not in layers or last not in PACKED:
            yield name, partial(get, name)
        elif last == PACKED[0]:
            yield f"{layer}.weight", partial(weight, layer)


FORMATS: dict[str, Callable[[Headers, Get, dict], Named]] = {"fp8": fp8, "mxfp4": mxfp4, "gptq": gptq, "awq": awq}
