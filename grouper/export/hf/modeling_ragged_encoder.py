"""A Bert model whose attentions have KV heads of their own number and groups of query heads of their own sizes. Needs
torch and transformers 5.0 or later; 5.24.0 is the newest release that it was tested with.

`config.kv_readers` lists for each attention, by its place in the model, the query heads of the original that read each
of its KV heads, e.g. [[0, 3], [1], [2]]; query heads are in that order here. Where `config.query_of_head` names an
attention, its query projection has fewer heads than its output, and the list says which one each takes. Attention is
the family's own, but for the kernel's inputs. Caches have the KV heads that there are: while a decoder writes, the
queries of a group are laid side by side as if they were so many tokens (short groups filled up with copies that are
dropped). Passes over many tokens use a grouped kernel where groups are equal and nothing is masked, else K and V are
repeated for the pass, as transformers does for its own grouped models.

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


def taken(layer, given, name):
    """given [batch, heads, ...] by one of the layer's lists; as it is where that changes nothing."""
    if name in layer.unchanged:
        return given
    return given.index_select(1, index(layer, name, given.device))


def of_heads(layer, given, name):
    """A mask or bias [batch, heads or 1, ...], or None: taken where it has something for each head."""
    return given if given is None or given.shape[1] == 1 else taken(layer, given, name)


def repeated(layer, given):
    """K or V [batch, G, seen, head_dim] for each query head, laid out as projections lay out theirs: that is fastest to
    write and to read."""
    rows = given.transpose(1, 2)
    if layer.equal:
        rows = rows[:, :, :, None].expand(-1, -1, -1, layer.num_key_value_groups, -1).flatten(2, 3)
    else:
        rows = rows.index_select(2, index(layer, "kv_of_head", given.device))
    return rows.transpose(1, 2)


def ragged_attention(layer, query, key, value, attention_mask, scaling=None, dropout=0.0, position_bias=None, **kwargs):
    """query [batch, heads, tokens, head_dim], key and value [batch, G, seen, head_dim]: the attention function that
    every attention calls. Returns [batch, tokens, H, head_dim] and weights or None."""
    name = layer.config.whole._attn_implementation
    query = taken(layer, query, "query_of_head")
    mask, bias = (of_heads(layer, given, "original_of_head") for given in (attention_mask, position_bias))
    if name == "sdpa":
        causal = kwargs["is_causal"] if kwargs.get("is_causal") is not None else getattr(layer, "is_causal", False)
        mask = combined(mask, bias, causal and query.shape[2] > 1, query, key)
        causal = causal and mask is None and query.shape[2] > 1
        options = {"scale": scaling, "dropout_p": dropout, "is_causal": causal}
        return grouped_attention(layer, query, key, value, mask, options).transpose(1, 2), None
    kwargs |= {} if bias is None else {"position_bias": bias}
    if name == "eager":
        key, value = repeated(layer, key), repeated(layer, value)
        attend = base.eager_attention_forward
        return attend(Seen(layer), query, key, value, mask, scaling=scaling, dropout=dropout, **kwargs)
    query, mask = taken(layer, query, "head_of_slot"), of_heads(layer, mask, "head_of_slot")
    attend = ALL_ATTENTION_FUNCTIONS[name]
    output, _ = attend(Seen(layer), query, key, value, mask, scaling=scaling, dropout=dropout, **kwargs)
    return output.index_select(2, index(layer, "slot_of_head", output.device)), None


def combined(mask, bias, causal, query, key):
    """One mask of both; None where there is neither."""
    if bias is None:
        return mask
    if mask is None and causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        return bias.masked_fill(mask.logical_not(), torch.finfo(key.dtype).min)
    return bias if mask is None else bias + mask


def grouped_attention(layer, query, key, value, mask, options):
    """query [batch, H, tokens, head_dim], key and value [batch, G, seen, head_dim], mask [batch or 1, 1 or H, 1 or
    tokens, seen] or None. Returns [batch, H, tokens, head_dim]."""
    if query.shape[2] == 1:  # a decoder writes
        packed = taken(layer, query, "head_of_slot").reshape(len(query), key.shape[1], -1, query.shape[-1])
        mask = of_heads(layer, mask, "head_of_slot")
        if mask is not None and mask.shape[1] > 1:
            mask = mask.reshape(len(mask), *packed.shape[1:3], -1)
        output = scaled_dot_product_attention(packed, key, value, attn_mask=mask, **options)
        return taken(layer, output.reshape(len(query), -1, 1, query.shape[-1]), "slot_of_head")
    grouped = mask is None and layer.equal
    if not grouped:
        key, value = repeated(layer, key), repeated(layer, value)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped, **options)


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
    sizes, query_heads, widest = list(map(len, readers)), sum(map(len, readers)), max(map(len, readers))
    first = [sum(sizes[:g]) for g in range(len(sizes))]
    attention.equal = len(set(sizes)) == 1
    attention.query_of_head = query_of_head or list(range(query_heads))
    attention.original_of_head = [head for heads in readers for head in heads]
    attention.kv_of_head = [g for g, size in enumerate(sizes) for _ in range(size)]
    attention.head_of_slot = [first[g] + min(i, size - 1) for g, size in enumerate(sizes) for i in range(widest)]
    attention.slot_of_head = [g * widest + i for g, size in enumerate(sizes) for i in range(size)]
    lists = ("query_of_head", "original_of_head", "head_of_slot", "slot_of_head")
    attention.unchanged = {n for n in lists if getattr(attention, n) == list(range(len(getattr(attention, n))))}
    if not attention.equal:
        attention.unchanged.discard("slot_of_head")  # the last slots may be copies, which are dropped
    attention.num_key_value_groups, attention.indices = widest, {}
    if hasattr(attention, "num_heads"):  # Whisper shapes K and V by it
        attention.num_heads = len(readers)
    for name, heads in zip(PROJECTIONS, (max(attention.query_of_head) + 1, len(readers), len(readers))):
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
