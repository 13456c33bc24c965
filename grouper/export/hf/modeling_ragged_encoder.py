"""A Bert model whose attentions have KV heads of their own number and groups of query heads of their own sizes. Needs
transformers 5 and torch alone.

`config.kv_readers` lists for each attention, by its place in the model, the query heads that read each of its KV heads,
e.g. [[0, 3], [1], [2]]; query heads are in the order of the original. Where `config.query_of_head` names an attention,
its query projection has fewer heads than its output, and the list says which one each takes. Attention is the family's
own, but for the kernel's inputs: the queries of a group are laid one after the other as if they were so many more
tokens, short groups are filled up with copies, and what those gave is dropped. Weights and caches are never padded, and
K and V are never expanded, unless "eager" attention is asked for.

Written by Grouper beside the weights; load with an Auto class and trust_remote_code=True.
"""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert as base
from transformers.models.bert.configuration_bert import BertConfig

PROJECTIONS = ("query", "key", "value")
TOO_OLD = "this model needs transformers 5.0 or later, whose class leaves the kernel of attention to be chosen"
if not hasattr(base, "ALL_ATTENTION_FUNCTIONS"):
    raise ImportError(TOO_OLD)


class RaggedConfig(BertConfig):
    model_type = "grouper_ragged_bert"

    def __init__(self, kv_readers=None, query_of_head=None, **kwargs):
        super().__init__(**kwargs)
        self.kv_readers, self.query_of_head = kv_readers or {}, query_of_head or {}


def index(layer, name, device):
    """A layer's list as a tensor, made once for each device: to copy it anew for every token would stall a GPU."""
    key = (name, device, torch.is_inference_mode_enabled())
    if torch.compiler.is_compiling() or key not in layer.indices:
        made = torch.tensor(getattr(layer, name), device=device)
        if torch.compiler.is_compiling():
            return made
        layer.indices[key] = made
    return layer.indices[key]


def by_slot(layer, given):
    """What is given for each query head [batch, H, ...], for each slot; what is the same for all stays so."""
    return given if given is None or given.shape[1] == 1 else given.index_select(
        1, index(layer, "head_of_slot", given.device)
    )  # fmt: skip


def ragged_attention(layer, query, key, value, attention_mask, scaling=None, dropout=0.0, position_bias=None, **kwargs):
    """query [batch, heads, tokens, head_dim], key and value [batch, G, seen, head_dim]: the attention function that
    every attention calls. Returns [batch, tokens, H, head_dim] and weights or None."""
    name = layer.config.whole._attn_implementation
    query = query.index_select(1, index(layer, "query_of_slot", query.device))  # [batch, G * m, tokens, head_dim]
    mask, bias = by_slot(layer, attention_mask), by_slot(layer, position_bias)
    slots = index(layer, "slot_of_head", query.device)
    if name == "sdpa":
        causal = kwargs["is_causal"] if kwargs.get("is_causal") is not None else getattr(layer, "is_causal", False)
        output = grouped_attention(query, key, value, mask, bias, scaling, dropout, causal)
        return output.index_select(1, slots).transpose(1, 2), None
    kwargs |= {} if bias is None else {"position_bias": bias}
    if name == "eager":
        key, value = (t.repeat_interleave(layer.num_key_value_groups, dim=1) for t in (key, value))
    attend = base.eager_attention_forward if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    output, weights = attend(Seen(layer), query, key, value, mask, scaling=scaling, dropout=dropout, **kwargs)
    return output.index_select(2, slots), None if weights is None else weights.index_select(1, slots)


def grouped_attention(query, key, value, mask, bias, scaling, dropout, causal):
    """query [batch, G * m, tokens, head_dim], key and value [batch, G, seen, head_dim], mask and bias [batch or 1, 1 or
    G * m, 1 or tokens, seen] or None. Returns [batch, G * m, tokens, head_dim]."""
    options = {"scale": scaling, "dropout_p": dropout}
    tokens, causal = query.shape[2], causal and mask is None and query.shape[2] > 1
    if causal and bias is None:
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True, **options)
    if bias is not None:
        if causal:
            mask = torch.ones(tokens, key.shape[2], dtype=torch.bool, device=key.device).tril()
        if mask is not None and mask.dtype == torch.bool:
            bias = bias.masked_fill(mask.logical_not(), torch.finfo(key.dtype).min)
        mask = bias if mask is None or mask.dtype == torch.bool else mask + bias
    packed = query.unflatten(1, (key.shape[1], -1))  # [batch, G, m, tokens, head_dim]
    if mask is not None:
        shared = mask.shape[1] == 1
        mask = mask[:, :, None] if shared else mask.unflatten(1, packed.shape[1:3])
        if not (shared and mask.shape[3] == 1):  # else one row for all queries is enough
            mask = mask.expand(-1, -1, packed.shape[2], tokens, -1)
        mask = mask.flatten(2, 3)
    output = scaled_dot_product_attention(packed.flatten(2, 3), key, value, attn_mask=mask, **options)
    return output.reshape(query.shape)


ALL_ATTENTION_FUNCTIONS.register("grouper_ragged_encoder", ragged_attention)


class LayerConfig:
    """The model's configuration as one attention sees it: with the function above."""

    _attn_implementation = "grouper_ragged_encoder"

    def __init__(self, whole):
        self.__dict__.update(whole=whole)

    def __getattr__(self, name):
        if "whole" not in self.__dict__:  # while it is being copied
            raise AttributeError(name)
        return getattr(self.whole, name)


class Seen:
    """An attention as kernels see it: some look up the model's attention function in its configuration."""

    def __init__(self, layer):
        self.layer, self.config = layer, layer.config.whole

    def __getattr__(self, name):
        return getattr(self.layer, name)


def regroup(attention, readers, query_of_head):
    """Give an attention as many K and V heads as there are lists in `readers`, in place."""
    query_heads, widest = sum(map(len, readers)), max(map(len, readers))
    query_of_head = query_of_head or list(range(query_heads))
    attention.head_of_slot = [heads[min(i, len(heads) - 1)] for heads in readers for i in range(widest)]
    attention.query_of_slot = [query_of_head[head] for head in attention.head_of_slot]
    slots = {head: g * widest + i for g, heads in enumerate(readers) for i, head in enumerate(heads)}
    attention.slot_of_head = [slots[head] for head in range(query_heads)]
    attention.num_key_value_groups, attention.indices = widest, {}
    if hasattr(attention, "num_heads"):  # Whisper shapes K and V by it
        attention.num_heads = len(readers)
    for name, heads in zip(PROJECTIONS, (max(query_of_head) + 1, len(readers), len(readers))):
        old = getattr(attention, name)
        size = heads * (old.out_features // query_heads)
        setattr(attention, name, nn.Linear(old.in_features, size, bias=old.bias is not None))
    attention.config = LayerConfig(attention.config)


def ragged(of):
    """A class of the family, regrouped as its configuration says."""

    class Ragged(of):
        config_class = RaggedConfig

        def __init__(self, config, *inputs, **kwargs):
            super().__init__(config, *inputs, **kwargs)
            found = False
            for name, module in list(self.named_modules()):
                place = next((p for p in config.kv_readers if f".{name}".endswith(f".{p}")), None)
                if place is not None:
                    found = True
                    regroup(module, config.kv_readers[place], config.query_of_head.get(place))
            if config.kv_readers and not found:
                raise ImportError(TOO_OLD)
            self.post_init()

    Ragged.__name__ = Ragged.__qualname__ = f"Ragged{of.__name__}"
    Ragged.__module__ = __name__
    try:  # transformers renames some families' tensors when it loads them, by the name of the class
        from transformers import conversion_mapping as renaming

        mapping = renaming.get_checkpoint_conversion_mapping(of.__name__)
        if mapping is not None:
            renaming.register_checkpoint_conversion_mapping(Ragged.__name__, mapping, overwrite=True)
    except ImportError:
        pass
    return Ragged


RaggedBertModel = ragged(base.BertModel)
