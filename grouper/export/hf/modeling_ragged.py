"""A Llama model whose attentions have KV heads of their own number and groups of query heads of their own sizes. Needs
torch and transformers 4.57 or later; 5.24.0 is the newest release that it was tested with.

A decoder's `config.kv_groups[layer]` lists how many query heads read each KV head of that layer, e.g. [1, 1, 2, 4]. An
encoder's `config.kv_readers` lists for each attention, by its place in the model, the query heads of the original that
read each KV head, e.g. [[0, 3], [1], [2]]. Query heads are in the order of the groups. Where `config.query_of_head`
names an attention, its query projection has fewer heads than its output, and the list says which one each output takes.

Attention is the family's own, except for the inputs of the kernel. Kernels want equal groups, so the activations are
padded: queries are laid out in KV heads x largest group slots, empty slots hold a copy of some query, a native grouped
kernel runs, and the outputs of the empty slots are dropped. Weights and KV cache are never padded, and the cache is
never expanded. Encoders have ways of their own, too (see `encoders_sdpa`).

Written by Grouper beside the weights; load with an Auto class and trust_remote_code=True.
"""

import copy
import threading

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama as base
from transformers.models.llama.configuration_llama import LlamaConfig

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
TOO_OLD = "this model needs transformers 4.57 or later, whose class leaves the kernel of attention to be chosen"
if not hasattr(base, "ALL_ATTENTION_FUNCTIONS"):
    raise ImportError(TOO_OLD)


class RaggedConfig(LlamaConfig):
    model_type = "grouper_ragged_llama"
    kv_groups = kv_readers = query_of_head = None

    def __init__(self, **kwargs):
        # Engines that size each layer's cache read per_layer_config; others go on asking for the global counts.
        self.allow_global_per_layer_attribute_access = True
        super().__init__(**kwargs)

    def __getattribute__(self, name):
        """A global count is the largest of all layers, so that whoever plans a cache by it never takes too little.
        transformers warns of each such look, its own classes' too."""
        per_layer = super().__getattribute__("__dict__").get("_heterogeneity_spec")
        if per_layer is not None and name in per_layer.per_layer_attributes:
            return self._getattr_without_heterogeneous_validation(name)
        return super().__getattribute__(name)

    def validate_architecture(self):
        """Some families' own check reads one head count for all layers."""


def attentions(config):
    """By the attention's place in the model: (the query heads that read each KV head, query_of_head or None)."""
    shared, found = config.query_of_head, {}
    for layer, sizes in enumerate(config.kv_groups or ()):
        heads = iter(range(sum(sizes)))
        readers = [[next(heads) for _ in range(size)] for size in sizes]
        found[f"layers.{layer}.self_attn"] = readers, shared[layer] if shared else None
    for place, readers in (config.kv_readers or {}).items():
        found[place] = readers, (shared or {}).get(place)
    return found


def slots(groups):
    """groups: query heads per KV head. Returns (head_of_slot [G * m], slot_of_head [H]) for m = max(groups)."""
    widest, first, head_of_slot, slot_of_head = max(groups), 0, [], []
    for group, size in enumerate(groups):
        slot_of_head += [group * widest + i for i in range(size)]
        head_of_slot += [first + min(i, size - 1) for i in range(widest)]
        first += size
    return head_of_slot, slot_of_head


def index(layer, name, device):
    """A layer's list as a tensor, made once for each device: to copy it anew for every token would stall a GPU."""
    if torch.compiler.is_compiling():  # which cannot ask for the mode
        return torch.tensor(layer.lists[name], device=device)
    key = (name, device, torch.is_inference_mode_enabled())
    if key not in layer.indices:
        layer.indices[key] = torch.tensor(layer.lists[name], device=device)
    return layer.indices[key]


def taken(layer, given, name, dim=1):
    """given [batch, heads, ...], whose heads are in dimension dim, by one of the layer's lists."""
    return given if name in layer.unchanged else given.index_select(dim, index(layer, name, given.device))


def of_heads(layer, given, name):
    """A mask or bias [batch, heads or 1, tokens, seen], taken where each head has its own; others as they are."""
    own = isinstance(given, torch.Tensor) and given.ndim == 4 and given.shape[1] > 1
    return taken(layer, given, name) if own else given


def repeated(layer, given):
    """K or V [batch, G, seen, head_dim] for each query head, laid out as projections lay out theirs, which is fastest
    to write and to read."""
    rows = given.transpose(1, 2)
    if layer.equal:
        rows = rows[:, :, :, None].expand(-1, -1, -1, layer.num_key_value_groups, -1).flatten(2, 3)
    else:
        rows = rows.index_select(2, index(layer, "kv_of_head", given.device))
    return rows.transpose(1, 2)


def packed(layer, given):
    """given [batch, G * m, 1, n], by slots: the queries of a group as m tokens [batch, G, m, n]. A mask for all heads
    stays as it is."""
    if given is None or given.shape[1] == 1:
        return given
    return given.reshape(len(given), layer.kv_heads, -1, given.shape[-1])


def combined(mask, bias, causal, query, key):
    """One mask of both; None where there is neither."""
    if bias is None:
        return mask
    if mask is None and causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        return bias.masked_fill(mask.logical_not(), torch.finfo(key.dtype).min)
    return bias if mask is None else bias + mask


def encoders_sdpa(layer, query, key, value, mask, bias, scaling=None, dropout=0.0, is_causal=None, **_others):
    """torch's own kernel, for classes that do not know groups. A decoder's one token reads the whole cache: the queries
    of a group are laid side by side as if they were so many tokens, so that K and V are read once. Many tokens are a
    matter of computing, which empty slots would add to: K and V are repeated for the heads that there are, except where
    the grouped kernel, which takes no mask, needs no empty slots."""
    one = query.shape[2] == 1
    each = "slot" if one else "head"
    query = taken(layer, query, f"query_of_{each}")
    mask, bias = (of_heads(layer, given, f"original_of_{each}") for given in (mask, bias))
    causal = not one and (getattr(layer, "is_causal", False) if is_causal is None else is_causal)
    mask = combined(mask, bias, causal, query, key)
    options = {"scale": scaling, "dropout_p": dropout, "is_causal": causal and mask is None}
    if one:
        query, mask = packed(layer, query), packed(layer, mask)
        output = scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)
        output = output.reshape(len(output), -1, 1, output.shape[-1])
        return taken(layer, output, "slot_of_head").transpose(1, 2)
    grouped = mask is None and layer.equal
    if not grouped:
        key, value = repeated(layer, key), repeated(layer, value)
    output = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped, **options)
    return output.transpose(1, 2)


def ragged_attention(layer, query, key, value, attention_mask, position_bias=None, **kwargs):
    """query [batch, query projections, tokens, head_dim], key and value [batch, G, seen, head_dim]: the attention
    function that every layer calls. Returns [batch, tokens, H, head_dim] and [batch, H, tokens, seen] or None."""
    whole, each, own = layer.config.whole, "slot", {}
    name = whole._attn_implementation
    attend = base.eager_attention_forward if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    if layer.knows_groups:
        end(layer)  # kernels look up the model's attention function there, too
    elif name == "sdpa":
        return encoders_sdpa(layer, query, key, value, attention_mask, position_bias, **kwargs), None
    else:
        own["config"] = whole
    if name == "eager" and not layer.knows_groups:  # it takes as many KV heads as query heads
        each, key, value = "head", repeated(layer, key), repeated(layer, value)
    query = taken(layer, query, f"query_of_{each}")
    mask, bias = (of_heads(layer, given, f"original_of_{each}") for given in (attention_mask, position_bias))
    if bias is not None:
        kwargs["position_bias"] = bias
    if kwargs.get("s_aux") is not None:  # attention sinks, one for each query head
        own["sinks"] = kwargs["s_aux"] = taken(layer, kwargs["s_aux"], "head_of_slot", 0)
    output, weights = attend(AttentionView(layer, own) if own else layer, query, key, value, mask, **kwargs)
    if each == "slot" and not layer.equal:
        output = output.reshape(len(query), query.shape[2], -1, query.shape[-1])  # serving engines flatten it
        output = taken(layer, output, "slot_of_head", 2)
        weights = None if weights is None else taken(layer, weights, "slot_of_head")
    return output, weights


ALL_ATTENTION_FUNCTIONS.register(RaggedConfig.model_type, ragged_attention)


class LayerConfig:
    """The model's configuration as one attention sees it: its own head counts, and in a thread where it computes, the
    function above. From outside, where serving engines look, it names the model's attention function. An encoder's, at
    which none of them looks, names ours at all times, for hooks cost time."""

    def __init__(self, whole, computing, **own):
        self.__dict__.update(own, whole=whole, computing=computing, threads=set())

    @property
    def _attn_implementation(self):
        if self.computing:
            return RaggedConfig.model_type
        # a compiler knows no threads; what it compiles may begin outside of it, and the other way round
        here = len(self.threads) > 0 if torch.compiler.is_compiling() else threading.get_ident() in self.threads
        return RaggedConfig.model_type if here else self.whole._attn_implementation

    def __getattr__(self, name):
        if "whole" not in self.__dict__:  # while it is being copied
            raise AttributeError(name)
        return getattr(self.whole, name)


class AttentionView:
    """An attention as the kernel of one call sees it: some of its attributes are the call's own."""

    def __init__(self, layer, own):
        self.layer, self.own = layer, own

    def __getattr__(self, name):
        return self.own[name] if name in self.own else getattr(self.layer, name)


def begin(layer, inputs):
    if torch.compiler.is_compiling():
        layer.config.computing = True
    else:
        layer.config.threads.add(threading.get_ident())


def end(layer, *_):
    if layer.config.computing:
        layer.config.computing = False
    if not torch.compiler.is_compiling():
        layer.config.threads.discard(threading.get_ident())


def install_groups(attention, readers, query_of_head=None):
    """Give an attention as many KV heads as there are lists of query heads in `readers`, in place."""
    sizes, whole, knows_groups = list(map(len, readers)), attention.config, hasattr(attention, "num_key_value_groups")
    counts = {"num_attention_heads": sum(sizes), "num_key_value_heads": len(sizes)}
    of_head = query_of_head or list(range(sum(sizes)))
    heads = dict(zip(PROJECTIONS, (max(of_head) + 1, len(sizes), len(sizes))))
    if knows_groups:  # its class sizes all that depends on K and V
        sized = copy.deepcopy(whole)
        for name, count in counts.items():
            setattr(sized, name, count)
        attention.__init__(sized, attention.layer_idx)
        heads = {PROJECTIONS[0]: heads[PROJECTIONS[0]]} if query_of_head else {}
    for name, count in heads.items():
        old = getattr(attention, name)
        size = count * (old.out_features // sum(sizes))
        setattr(attention, name, nn.Linear(old.in_features, size, bias=old.bias is not None))
    if hasattr(attention, "num_heads"):  # StableLM shapes Q by it, Whisper K and V
        attention.num_heads = max(of_head) + 1 if knows_groups else len(sizes)
    head_of_slot, slot_of_head = slots(sizes)
    original_of_head = [head for heads in readers for head in heads]
    attention.lists = {
        "query_of_head": of_head, "query_of_slot": [of_head[head] for head in head_of_slot],
        "original_of_head": original_of_head, "original_of_slot": [original_of_head[head] for head in head_of_slot],
        "head_of_slot": head_of_slot, "slot_of_head": slot_of_head,
        "kv_of_head": [g for g, size in enumerate(sizes) for _ in range(size)],
    }  # fmt: skip
    attention.unchanged = {name for name, of in attention.lists.items() if of == list(range(len(of)))}
    attention.equal, attention.kv_heads, attention.indices = len(set(sizes)) == 1, len(sizes), {}
    if not attention.equal:
        attention.unchanged.discard("slot_of_head")  # the last slots may be copies, which are dropped
    attention.num_key_value_groups, attention.knows_groups = max(sizes), knows_groups
    attention.config = LayerConfig(whole, computing=not knows_groups, **counts)
    if knows_groups:
        attention.register_forward_pre_hook(begin)
        attention.register_forward_hook(end, always_call=True)


def ragged(of, name):
    """A class of the family, called `name`, whose attentions have the groups that its configuration says."""

    class Ragged(of):
        config_class = RaggedConfig

        def __init__(self, config, *inputs, **kwargs):
            super().__init__(config, *inputs, **kwargs)
            groups, found = attentions(config), False
            for path, module in list(self.named_modules()):
                place = next((p for p in groups if f".{path}".endswith(f".{p}")), None)
                if place is not None:
                    found = True
                    install_groups(module, *groups[place])
            if groups and not found:
                raise ImportError(TOO_OLD)
            self.post_init()

    Ragged.__name__ = Ragged.__qualname__ = name
    try:  # transformers 5 renames and stacks some families' tensors when it loads them, by class or model type
        from transformers import conversion_mapping as renaming

        for theirs, ours in ((of.__name__, name), (LlamaConfig.model_type, RaggedConfig.model_type)):
            mapping = renaming.get_checkpoint_conversion_mapping(theirs)
            if mapping is not None:
                renaming.register_checkpoint_conversion_mapping(ours, mapping, overwrite=True)
    except ImportError:  # transformers 4 has them as they are stored
        pass
    return Ragged


RaggedModel = ragged(base.LlamaModel, "RaggedModel")
RaggedForCausalLM = ragged(base.LlamaForCausalLM, "RaggedForCausalLM")
