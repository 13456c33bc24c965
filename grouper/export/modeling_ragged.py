"""A Llama model whose layers have KV heads of their own number and query groups of their own sizes. Needs transformers and torch alone.

`config.kv_groups[layer]` lists how many query heads read each KV head of that layer, e.g. [1, 1, 2, 4]; the rows of q_proj and the columns
of o_proj are in the order of the groups. Where `config.query_of_head` is there, q_proj has fewer heads than o_proj, and it lists the one that
each head takes. Attention kernels want equal groups, so the *activations* are padded: queries are laid out in
KV heads x largest group slots, empty slots hold a copy of some query, a native grouped kernel runs, and what the empty slots
gave is dropped. Weights and KV cache are never padded, and the cache is never expanded.

Written by Grouper beside the weights; load with AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).
"""

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaForCausalLM,
    LlamaModel,
    apply_rotary_pos_emb,
    eager_attention_forward,
)


class RaggedConfig(LlamaConfig):
    model_type = "grouper_ragged_llama"

    def __init__(self, kv_groups=None, query_of_head=None, qkv_bias=False, o_bias=False, **kwargs):
        # Engines that size each layer's cache read per_layer_config; asking for the global head counts must stay allowed.
        self.allow_global_per_layer_attribute_access = True
        super().__init__(**kwargs)
        self.kv_groups, self.query_of_head, self.qkv_bias, self.o_bias = kv_groups, query_of_head, qkv_bias, o_bias

    def validate_architecture(self):
        """Llama's own check reads one head count for all layers."""


def slots(groups):
    """groups: query heads per KV head. Returns (head_of_slot [G * m], slot_of_head [H]) for m = max(groups)."""
    widest, first, head_of_slot, slot_of_head = max(groups), 0, [], []
    for group, size in enumerate(groups):
        slot_of_head += [group * widest + i for i in range(size)]
        head_of_slot += [first + min(i, size - 1) for i in range(widest)]
        first += size
    return head_of_slot, slot_of_head


class RaggedAttention(LlamaAttention):
    def __init__(self, config, layer_idx):
        nn.Module.__init__(self)
        groups = config.kv_groups[layer_idx]
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_key_value_groups = max(groups)
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        kinds = getattr(config, "layer_types", None)
        windowed = kinds is None or kinds[layer_idx] == "sliding_attention"
        self.sliding_window = getattr(config, "sliding_window", None) if windowed else None
        outputs, kv = sum(groups) * self.head_dim, len(groups) * self.head_dim
        self.head_of_slot, self.slot_of_head = slots(groups)
        self.padded, queries = len(set(groups)) > 1, sum(groups)
        if config.query_of_head:
            self.head_of_slot = [config.query_of_head[layer_idx][head] for head in self.head_of_slot]
            queries = max(self.head_of_slot) + 1
        self.q_proj = nn.Linear(config.hidden_size, queries * self.head_dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(outputs, config.hidden_size, bias=config.o_bias)

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **kwargs):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)  # [batch, H, tokens, head_dim]
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)  # [batch, G, tokens, head_dim]
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            # transformers 4 wants to know where in a static cache to write
            where = [{"cache_position": kwargs["cache_position"]}] if kwargs.get("cache_position") is not None else []
            key, value = past_key_values.update(key, value, self.layer_idx, *where)
        if self.head_of_slot != list(range(query.shape[1])):
            query = query.index_select(1, torch.tensor(self.head_of_slot, device=query.device))  # [batch, G * m, tokens, head_dim]
        attend = eager_attention_forward
        if self.config._attn_implementation != "eager":
            attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        dropout = self.attention_dropout if self.training else 0.0
        if self.sliding_window is not None:
            kwargs["sliding_window"] = self.sliding_window
        output, weights = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        if self.padded:
            slot_of_head = torch.tensor(self.slot_of_head, device=query.device)
            output = output.reshape(shape).index_select(-2, slot_of_head)  # [batch, tokens, H, head_dim]; serving engines flatten it
            weights = None if weights is None else weights.index_select(1, slot_of_head)
        return self.o_proj(output.reshape(*shape[:-2], -1)), weights


class RaggedModel(LlamaModel):
    config_class = RaggedConfig

    def __init__(self, config):
        super().__init__(config)
        for index, layer in enumerate(self.layers):
            layer.self_attn = RaggedAttention(config, index)
        self.post_init()


class RaggedForCausalLM(LlamaForCausalLM):
    config_class = RaggedConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = RaggedModel(config)
        self.post_init()
