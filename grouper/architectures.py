"""Where each model family keeps q, k, v and o: names, fusion, biases, norms, RoPE.

A family is one entry of FAMILIES. `Architecture` is a family applied to one model's configuration: it reads and names that model's tensors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from grouper.attention import Attention
from grouper.checkpoint import Checkpoint
from grouper.errors import GrouperError


@dataclass(frozen=True)
class Family:
    """How one family stores attention. {layer} is the layer's number.

    fused: None, or how the rows of `q` (then the only projection) are ordered: "stacked" (all q, all k, all v), "per-head" (q, k, v of
        head 0, of head 1, ...; MHA only) or "per-group" (the queries of KV head 0, its k, its v, then KV head 1, ...).
    transposed: weights are [in, out] (GPT-2's Conv1D).
    norm: what stands before the projections; norm_offset is added to its weight (Gemma's g = 1 + w).
    qk_norm: None, "head" (one norm a head), or "all" (across heads).
    rope: None, "half" (rows i and i + d/2 are a plane) or "interleaved" (2i and 2i + 1).
    rotary: the configuration's key for the rotated share of head_dim, if partial.
    stock: the class of a regrouped model with one KV-head count, None if the family has none.
    """

    model_type: str
    stock: str | None
    layer: str = "model.layers.{layer}."
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    norm: str | None = "input_layernorm"
    norm_offset: float = 0.0
    fused: str | None = None
    transposed: bool = False
    qk_norm: str | None = None
    rope: str | None = "half"
    rotary: str | None = None


FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM"),
        Family("mistral", "MistralForCausalLM"),
        Family("qwen2", "Qwen2ForCausalLM"),
    )
}


@dataclass(frozen=True)
class Architecture:
    """One model's attention: sizes, and how to read and write it. Raises GrouperError for what is not supported."""

    family: Family
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    rotary_dim: int  # of head_dim, 0 without RoPE
    context: int  # tokens

    @classmethod
    def of(cls, config: dict) -> "Architecture":
        model_type = config.get("model_type", "nothing")
        if model_type not in FAMILIES:
            raise GrouperError(f"models of type {model_type!r} are not supported; those that are: {', '.join(FAMILIES)}")
        family = FAMILIES[model_type]
        try:
            heads, hidden = config["num_attention_heads"], config["hidden_size"]
            head_dim = config.get("head_dim") or hidden // heads
            kv_heads = config.get("num_key_value_heads") or heads
            layers = config["num_hidden_layers"]
        except KeyError as error:
            raise GrouperError(f"config.json has no {error.args[0]}, which a {model_type} model needs") from error
        except (TypeError, ZeroDivisionError) as error:
            raise GrouperError(f"config.json has sizes that are no numbers ({error})") from error
        if not all(isinstance(n, int) and n > 0 for n in (heads, kv_heads, head_dim, hidden, layers)):
            raise GrouperError(f"config.json has sizes that are no positive numbers: {heads} heads, {kv_heads} KV heads, {layers} layers")
        if heads % kv_heads:
            raise GrouperError(f"{heads} query heads are no multiple of {kv_heads} KV heads: is config.json right?")
        share = config.get(family.rotary, 1.0) if family.rotary else 1.0
        rotary_dim = int(share * head_dim) if family.rope else 0
        return cls(family, layers, heads, kv_heads, head_dim, hidden, rotary_dim, config.get("max_position_embeddings") or 0)

    @property
    def queries_per_kv_head(self) -> int:
        return self.query_heads // self.kv_heads

    def uniform_counts(self, multiple_of: int = 1) -> list[int]:
        """KV-head counts below the model's own that every layer can have at once, ascending."""
        return [count for count in range(1, self.kv_heads) if count % multiple_of == 0]

    def equal_counts(self, multiple_of: int = 1) -> list[int]:
        """Those of them that give equal groups."""
        return [count for count in self.uniform_counts(multiple_of) if self.kv_heads % count == 0]

    @cached_property
    def planes(self) -> Tensor:
        """[rotary_dim / 2, 2]: the two rows of head_dim that RoPE rotates together."""
        half = self.rotary_dim // 2
        if self.family.rope == "interleaved":
            return torch.arange(self.rotary_dim).view(half, 2)
        return torch.stack([torch.arange(half), torch.arange(half) + half], dim=-1)

    # Names

    def prefix(self, checkpoint: Checkpoint, layer: int) -> str:
        """The layer's place in this checkpoint: some are saved without the leading `model.`"""
        full = self.family.layer.format(layer=layer)
        bare = full.split(".", 1)[1]
        return bare if f"{full}{self.family.q}.weight" not in checkpoint and f"{bare}{self.family.q}.weight" in checkpoint else full

    def projections(self) -> list[str]:
        """The modules that hold attention weights, within a layer."""
        return [self.family.q, self.family.o] if self.family.fused else [self.family.q, self.family.k, self.family.v, self.family.o]

    # Reading

    def read(self, checkpoint: Checkpoint, layer: int) -> Attention:
        """The layer's weights in float32. Raises GrouperError for missing, misshapen or non-finite tensors."""
        prefix = self.prefix(checkpoint, layer)

        def weight(module: str) -> Tensor:
            tensor = checkpoint.finite(f"{prefix}{module}.weight")
            return tensor.T if self.family.transposed else tensor

        def bias(module: str) -> Tensor | None:
            name = f"{prefix}{module}.bias"
            return checkpoint.finite(name) if name in checkpoint else None

        f = self.family
        if f.fused:
            rows, bias_rows = weight(f.q), bias(f.q)
            q, k, v = self.split(rows)
            q_bias, k_bias, v_bias = (None,) * 3 if bias_rows is None else (b[..., 0] for b in self.split(bias_rows[:, None]))
        else:
            q, k, v = (self.heads(weight(m), m) for m in (f.q, f.k, f.v))
            q_bias, k_bias, v_bias = (None if b is None else b.view(-1, self.head_dim) for b in map(bias, (f.q, f.k, f.v)))
        if (q.shape[0], k.shape[0], v.shape[0]) != (self.query_heads, self.kv_heads, self.kv_heads):
            raise GrouperError(f"layer {layer} has {q.shape[0]}/{k.shape[0]}/{v.shape[0]} q/k/v heads, config.json says otherwise")
        o = weight(f.o)
        o = o.reshape(o.shape[0], self.query_heads, self.head_dim)
        return Attention(q, k, v, o, q_bias, k_bias, v_bias, bias(f.o), self.planes if self.rotary_dim else None)

    def heads(self, rows: Tensor, module: str = "") -> Tensor:
        """[heads * d, D] -> [heads, d, D]"""
        if rows.shape[0] % self.head_dim:
            raise GrouperError(f"{module} has {rows.shape[0]} rows, no multiple of head_dim {self.head_dim}: is config.json right?")
        return rows.reshape(-1, self.head_dim, rows.shape[-1])

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fused rows [(H + 2 G) d, D] -> q [H, d, D], k [G, d, D], v [G, d, D]."""
        heads = self.heads(rows, self.family.q)
        if self.family.fused == "stacked":
            q, k, v = heads.split([self.query_heads, self.kv_heads, self.kv_heads])
            return q, k, v
        grouped = heads.unflatten(0, (self.kv_heads, self.queries_per_kv_head + 2))  # [G, queries + k + v, d, D]
        return grouped[:, :-2].flatten(0, 1), grouped[:, -2], grouped[:, -1]

    def key_outputs(self, output: Tensor) -> Tensor:
        """What the module that gives k gave [windows, tokens, rows] -> keys before any norm and RoPE [windows, G, d, tokens]."""
        if not self.family.fused:
            return output.unflatten(-1, (self.kv_heads, self.head_dim)).permute(0, 2, 3, 1)
        keys = self.split(output.flatten(0, 1).T)[1]  # [G, d, windows tokens]
        return keys.unflatten(-1, output.shape[:2]).permute(2, 0, 1, 3)

    def norm(self, checkpoint: Checkpoint, layer: int) -> tuple[Tensor | None, Tensor | None]:
        """(gain [D], bias [D]) of the norm before the projections; None where there is none."""
        if self.family.norm is None:
            return None, None
        prefix = f"{self.prefix(checkpoint, layer)}{self.family.norm}"
        gain = checkpoint.finite(f"{prefix}.weight") + self.family.norm_offset
        return gain, checkpoint.finite(f"{prefix}.bias") if f"{prefix}.bias" in checkpoint else None

    def stored_dtype(self, checkpoint: Checkpoint, layer: int) -> torch.dtype:
        """What the layer's projections are kept in."""
        return checkpoint.tensors[f"{self.prefix(checkpoint, layer)}{self.family.q}.weight"].torch_dtype

    # Writing

    def tensors(self, prefix: str, attention: Attention) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of separate projections for these weights, heads in the order given."""
        f = self.family
        for module, weight, bias in (
            (f.q, attention.q, attention.q_bias), (f.k, attention.k, attention.k_bias), (f.v, attention.v, attention.v_bias),
        ):  # fmt: skip
            yield f"{prefix}{module}.weight", weight.flatten(0, 1)
            if bias is not None:
                yield f"{prefix}{module}.bias", bias.flatten()
        yield f"{prefix}{f.o}.weight", attention.o.flatten(1)
        if attention.o_bias is not None:
            yield f"{prefix}{f.o}.bias", attention.o_bias
