"""Data types of KV caches in serving engines: bits per value, scales included, and the rounding of each type.

Rounding is simulated: a tensor is returned as attention would read it from such a cache. Keys are rounded after RoPE,
because engines store rotated keys. The rules were taken from the engines' sources:

    fp8         vLLM and SGLang, e4m3 with their default scale of 1.0; larger values than 448 are clipped
    fp8-scaled  the same with a scale for each KV head, which brings the largest value of the window to 448
    q8_0, q4_0  llama.cpp: blocks of 32 values, a float16 scale each. Where head_dim is a multiple of 64 it rotates K
                and V by Hadamard matrices first: K by the largest power of two that divides head_dim, V by 64
    quanto4     transformers' quantised cache, by optimum-quanto: 4 bits, groups of 64 with a scale and a shift in 16
                bits. Its newest tokens, up to 128, stay exact (see grouper.running.kept_cache)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from grouper.errors import GrouperError
from grouper.names import expected

Part = Literal["k", "v"]
Rounding = Callable[[Tensor, Part], Tensor]  # [..., tokens, d] -> the same shape, in float32
LARGEST_FP8 = 448.0
BLOCK = 32  # values per block of llama.cpp
ROTATED = 64  # rows of the smallest Hadamard matrix that llama.cpp rotates by
GROUP = 64  # values per group of transformers' cache
RESIDUAL = 128  # newest tokens that transformers' cache keeps exact


@dataclass(frozen=True)
class CacheType:
    """KV cache type. bits: bits per value, its share of the scales included. rounding: None if values stay as they are.
    block: divisor that head_dim must have. residual: largest number of newest tokens that stay exact. flags:
    command-line flags that select the type in engines."""

    name: str
    bits: float
    says: str  # for people
    rounding: Rounding | None = None
    block: int = 1
    residual: int = 0
    flags: dict[str, str] = field(default_factory=dict, compare=False)

    def rounded(self, values: Tensor, part: Part) -> Tensor:
        """Values [..., tokens, d] as attention reads them from the cache, in their original dtype."""
        return values if self.rounding is None else self.rounding(values.float(), part).to(values.dtype)

    def check(self, head_dim: int, position: str = "rope") -> None:
        """Raise GrouperError if a cache of this type cannot be measured with this head_dim or kind of positions
        (Family.position)."""
        if head_dim % self.block:
            raise GrouperError(
                f"{self.name} keeps blocks of {self.block} values, and heads of this model have {head_dim}: engines "
                "refuse that; take another `kv_cache`"
            )
        if self.residual and position == "alibi":
            raise GrouperError(f"{self.name} cannot be measured with ALiBi: take another `kv_cache`")


def fp8(values: Tensor, part: Part) -> Tensor:
    """Values rounded to the nearest e4m3 number, clipped at 448.

    >>> fp8(torch.tensor([0.3, 17.0, -900.0]), "k").tolist()
    [0.3125, 16.0, -448.0]
    """
    return values.clamp(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn).to(values.dtype)


def fp8_scaled(values: Tensor, part: Part) -> Tensor:
    """Values [..., tokens, d] rounded to e4m3 with one scale per head."""
    scale = values.abs().amax((-2, -1), keepdim=True).clamp_min(1e-12) / LARGEST_FP8
    return fp8(values / scale, part) * scale


def q8_0(values: Tensor, part: Part) -> Tensor:
    """llama.cpp's 8-bit rounding. The largest magnitude of each block of 32 becomes 127; halves are rounded away from
    zero."""

    def rounded(blocks: Tensor) -> Tensor:  # [..., 32]
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        steps = blocks * _inverse(scale)
        return steps.sign() * (steps.abs() + 0.5).floor() * scale.half().float()

    return _rotated(values, part, rounded)


def q4_0(values: Tensor, part: Part) -> Tensor:
    """llama.cpp's 4-bit rounding. The value of largest magnitude in each block of 32 becomes -8, so 8 on the other side
    is clipped to 7."""

    def rounded(blocks: Tensor) -> Tensor:  # [..., 32]
        largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        scale = largest / -8
        steps = (blocks * _inverse(scale) + 8.5).floor().clamp(0, 15) - 8
        return steps * scale.half().float()

    return _rotated(values, part, rounded)


def quanto4(values: Tensor, part: Part) -> Tensor:
    """transformers' 4-bit rounding of [..., tokens, d]: each 64 consecutive values get 16 even steps
    from their smallest to their largest. Groups are cut from the tokens joined end to end, so that they span tokens
    if 64 does not divide d."""
    flat = values.flatten(-2)  # [..., tokens * d]
    short = -flat.shape[-1] % GROUP
    filled = torch.cat([flat, flat[..., -1:].expand(*flat.shape[:-1], short)], -1)
    groups = filled.unflatten(-1, (-1, GROUP))
    least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = (most - least) / 15
    steps = ((groups - least) * _inverse(scale)).round().clamp(0, 15)
    return (steps * scale + least).flatten(-2)[..., : flat.shape[-1]].view_as(values)


def _inverse(scale: Tensor) -> Tensor:
    """Reciprocal of the scale, 0 where the scale is 0."""
    return torch.where(scale == 0, 0.0, 1 / scale)


def _rotated(values: Tensor, part: Part, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """Values rounded in blocks [..., 32] of the last dimension, between a rotation and its inverse where llama.cpp
    rotates."""
    d = values.shape[-1]
    if d % ROTATED:
        return rounded(values.unflatten(-1, (-1, BLOCK))).flatten(-2)
    size = ROTATED if part == "v" else d & -d  # the largest power of two that divides d
    matrix = hadamard(size, values.device)
    turned = (values.unflatten(-1, (-1, size)) @ matrix).flatten(-2)
    kept = rounded(turned.unflatten(-1, (-1, BLOCK))).flatten(-2)
    return (kept.unflatten(-1, (-1, size)) @ matrix).flatten(-2)


@lru_cache(maxsize=8)
def hadamard(size: int, device: torch.device) -> Tensor:
    """Orthonormal, symmetric Hadamard matrix [size, size], its own inverse.

    >>> hadamard(2, torch.device("cpu")).mul(2**0.5).round().tolist()
    [[1.0, 1.0], [1.0, -1.0]]
    """
    with torch.inference_mode(False):
        matrix = torch.ones(1, 1)
        while len(matrix) < size:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        return (matrix / size**0.5).to(device)


def _llama_cpp(name: str) -> dict[str, str]:
    return {"llama.cpp": f"-ctk {name} -ctv {name} -fa on"}


VLLM_FP8 = {"vLLM": "--kv-cache-dtype fp8"}
CALIBRATED = {"vLLM": "--kv-cache-dtype fp8, with k_scale and v_scale that llm-compressor calibrated"}
QUANTO = {"transformers": 'generate(..., cache_implementation="quantized", cache_config={"backend": "quanto"})'}

CACHE_TYPES = {
    kind.name: kind
    for kind in (
        CacheType("float16", 16, "rounded to float16", lambda values, part: values.half().float()),
        CacheType("bfloat16", 16, "rounded to bfloat16", lambda values, part: values.bfloat16().float()),
        CacheType("fp8", 8, "e4m3, scale 1.0 (vLLM's default)", fp8, flags=VLLM_FP8),
        CacheType("fp8-scaled", 8, "e4m3, a scale for each KV head", fp8_scaled, flags=CALIBRATED),
        CacheType("q8_0", 8.5, "llama.cpp, 8 bits in blocks of 32", q8_0, BLOCK, flags=_llama_cpp("q8_0")),
        CacheType("q4_0", 4.5, "llama.cpp, 4 bits in blocks of 32", q4_0, BLOCK, flags=_llama_cpp("q4_0")),
        CacheType("quanto4", 4.5, "transformers, 4 bits in groups of 64", quanto4, residual=RESIDUAL, flags=QUANTO),
    )
}


def cache_type(name: str) -> CacheType:
    """KV cache type of this name. Raises GrouperError for an unknown name.

    >>> cache_type("q4_0").bits
    4.5
    """
    if name not in CACHE_TYPES:
        raise GrouperError(f"unknown KV cache type {name!r}: {expected(name, CACHE_TYPES)}")
    return CACHE_TYPES[name]
