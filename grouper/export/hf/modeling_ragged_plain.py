"""A Bloom model whose layers have KV heads of their own number and query groups of their own sizes. Needs torch and
transformers 4.57 or later; 5.24.0 is the newest release that it was tested with.

`config.kv_groups[layer]` lists how many query heads read each KV head of that layer, e.g. [1, 1, 2, 4]; query heads are
in the order of the groups, and `config.head_order[layer]` says which head of the original each one was, as positional
biases (ALiBi) differ between heads. The family's class supports only as many KV heads as query heads, so this
file has an attention of its own: a group's queries are laid out one after the other as if they were more tokens, short
groups are filled with copies, and the outputs of the copies are dropped. Weights and KV cache are never padded, and
the cache is never expanded. Attention has no dropout here.

Written by Grouper beside the weights; load with AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).
"""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache
from transformers.models.bloom import modeling_bloom as base
from transformers.models.bloom.configuration_bloom import BloomConfig
from transformers.models.bloom.modeling_bloom import BloomAttention, BloomForCausalLM, BloomModel

TOO_NEW = (
    "attention got a mask over earlier tokens but no cache that holds them: this release of transformers is newer than "
    "this file; install one that its first lines name, or export the model again with a newer Grouper"
)


class RaggedConfig(BloomConfig):
    model_type = "grouper_ragged_bloom"

    def __init__(self, kv_groups=None, head_order=None, qkv_bias=False, o_bias=False, **kwargs):
        super().__init__(**kwargs)
        self.kv_groups, self.head_order, self.qkv_bias, self.o_bias = kv_groups, head_order, qkv_bias, o_bias


try:  # transformers 5 renames and stacks some families' tensors when it loads them, by class or model type
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )

    names = (BloomForCausalLM.__name__, RaggedConfig.model_type.removeprefix("grouper_ragged_"))
    mapping = next((m for m in map(get_checkpoint_conversion_mapping, names) if m is not None), None)
    if mapping is not None:
        register_checkpoint_conversion_mapping(RaggedConfig.model_type, mapping, overwrite=True)
except ImportError:  # transformers 4 loads them as stored
    pass


def index(layer, name, device):
    """A layer's list as a tensor, made once for each device. Copying it for every token would stall a GPU."""
    if torch.compiler.is_compiling():  # the compiler cannot query the mode
        return torch.tensor(getattr(layer, name), device=device)
    key = (name, device, torch.is_inference_mode_enabled())
    if key not in layer.indices:
        layer.indices[key] = torch.tensor(getattr(layer, name), device=device)
    return layer.indices[key]


class RaggedAttention(nn.Module):
    def __init__(self, config, like):
        """Build the attention. like: the attention of the family's own class, whose scale and sizes also apply here."""
        super().__init__()
        self.layer_idx, groups = like.layer_idx, config.kv_groups[like.layer_idx]
        self.kv_heads, self.widest, self.indices = len(groups), max(groups), {}
        self.head_dim = config.hidden_size // sum(groups)
        self.scaling = next(
            (getattr(like, n) for n in ("scaling", "inv_norm_factor", "softmax_scale") if hasattr(like, n)), None
        )
        if self.scaling is None:  # transformers 4's GPT-2 computes it when called
            self.scaling = self.head_dim**-0.5 if config.scale_attn_weights else 1.0
            self.scaling /= like.layer_idx + 1 if config.scale_attn_by_inverse_layer_idx else 1
        self.clip = getattr(like, "clip_qkv", None)
        self.slot_of_head = [g * self.widest + i for g, size in enumerate(groups) for i in range(size)]
        first = [sum(groups[:g]) for g in range(len(groups))]
        self.head_of_slot = [first[g] + min(i, size - 1) for g, size in enumerate(groups) for i in range(self.widest)]
        self.original_of_slot = [config.head_order[like.layer_idx][head] for head in self.head_of_slot]
        hidden, kv = config.hidden_size, len(groups) * self.head_dim
        self.q_proj = nn.Linear(hidden, hidden, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden, kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden, kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(hidden, hidden, bias=config.o_bias)

    def heads(self, projection, x):
        """Heads of a projection's output: x [batch, tokens, D] -> [batch, heads, tokens, head_dim]."""
        y = projection(x)
        y = y if self.clip is None else y.clamp(-self.clip, self.clip)
        return y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def mask(self, given, bias, query, tokens, seen):
        """Term added to the scores: [batch or 1, 1 or G, m * tokens, seen]. bias: per original head, or None."""
        if given is None:
            given = (
                torch.ones(tokens, seen, dtype=torch.bool, device=query.device)
                .tril(seen - tokens)
                .logical_not()[None, None]
            )
        if given.dtype == torch.bool:  # True where nothing may be seen
            given = torch.zeros(given.shape, dtype=query.dtype, device=query.device).masked_fill(
                given, torch.finfo(query.dtype).min
            )
        given = given[..., :seen]
        if bias is not None:
            given = given + bias.to(query.dtype)
        if given.shape[1] > 1:
            given = given.index_select(1, index(self, "original_of_slot", query.device)).unflatten(
                1, (self.kv_heads, self.widest)
            )
        else:
            given = given[:, None].expand(-1, 1, self.widest, -1, -1)
        return given.expand(-1, -1, -1, tokens, -1).flatten(2, 3)

    def forward(
        self,
        hidden_states,
        residual=None,
        alibi=None,
        attention_mask=None,
        position_bias=None,
        position_embeddings=None,
        **kwargs,
    ):
        query, key, value = (self.heads(p, hidden_states) for p in (self.q_proj, self.k_proj, self.v_proj))
        if position_embeddings is not None and alibi is None:
            query, key = base.apply_rotary_pos_emb(query, key, *position_embeddings)
        batch, _, tokens, _ = query.shape
        # releases of transformers call it layer_past, past_key_values or cache
        cache = next((given for given in kwargs.values() if isinstance(given, Cache)), None)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        elif attention_mask is not None and attention_mask.shape[-1] > tokens:
            raise RuntimeError(TOO_NEW)
        seen, bias = key.shape[2], None
        if position_bias is not None:  # MPT: [heads, 1, longest]
            bias = position_bias[None, :, :, position_bias.shape[2] - seen :]
        elif alibi is not None and (
            attention_mask is None or attention_mask.shape[1] == 1
        ):  # else the mask holds it already
            bias = alibi.reshape(batch, -1, 1, alibi.shape[-1])[..., :seen]
        query = query.index_select(1, index(self, "head_of_slot", query.device))
        packed = query.reshape(batch, self.kv_heads, self.widest * tokens, self.head_dim)
        mask = self.mask(attention_mask, bias, query, tokens, seen)
        output = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=self.scaling)
        output = output.reshape(batch, self.kv_heads * self.widest, tokens, self.head_dim)
        output = output.index_select(1, index(self, "slot_of_head", query.device))  # [batch, H, tokens, head_dim]
        output = self.o_proj(output.transpose(1, 2).flatten(2))
        return output if residual is None else output + residual, None


def regroup(model, config):
    """Replace every attention of the model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BloomAttention):
                setattr(parent, name, RaggedAttention(config, child))


class RaggedModel(BloomModel):
    config_class = RaggedConfig
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = False  # because masks are given as numbers

    def __init__(self, config):
        super().__init__(config)
        regroup(self, config)
        self.post_init()


class RaggedForCausalLM(BloomForCausalLM):
    config_class = RaggedConfig
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = False

    def __init__(self, config):
        super().__init__(config)
        regroup(self, config)
        self.post_init()
