"""A Llama model whose layers have KV heads of their own number and query groups of their own sizes. Needs torch and
transformers 4.57 or later; 5.24.0 is the newest release that it was tested with.

`config.kv_groups[layer]` lists how many query heads read each KV head of that layer, e.g. [1, 1, 2, 4]; query heads are
in the order of the groups. Where `config.query_of_head` is there, q_proj has fewer heads than o_proj, and it lists the
one that each head takes. Attention is the family's own, but for the kernel's inputs: kernels want equal groups, so the
*activations* are padded: queries are laid out in KV heads x largest group slots, empty slots hold a copy of some query,
a native grouped kernel runs, and what the empty slots gave is dropped. Weights and KV cache are never padded, and the
cache is never expanded.

Written by Grouper beside the weights; load with AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).
"""

import copy
import threading

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaForCausalLM,
    LlamaModel,
    eager_attention_forward,
)


class RaggedConfig(LlamaConfig):
    model_type = "grouper_ragged_llama"

    def __init__(self, kv_groups=None, query_of_head=None, **kwargs):
        # Engines that size each layer's cache read per_layer_config; others go on asking for the global counts.
        self.allow_global_per_layer_attribute_access = True
        super().__init__(**kwargs)
        self.kv_groups, self.query_of_head = kv_groups, query_of_head

    def validate_architecture(self):
        """Some families' own check reads one head count for all layers."""


try:  # transformers 5 renames and stacks some families' tensors when it loads them, by class or model type
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )

    names = (LlamaForCausalLM.__name__, RaggedConfig.model_type.removeprefix("grouper_ragged_"))
    mapping = next((m for m in map(get_checkpoint_conversion_mapping, names) if m is not None), None)
    if mapping is not None:
        register_checkpoint_conversion_mapping(RaggedConfig.model_type, mapping, overwrite=True)
except ImportError:  # transformers 4 has them as they are stored
    pass


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
    key = (name, device, torch.is_inference_mode_enabled())
    if torch.compiler.is_compiling() or key not in layer.indices:
        made = torch.tensor(getattr(layer, name), device=device)
        if torch.compiler.is_compiling():
            return made
        layer.indices[key] = made
    return layer.indices[key]


def ragged_attention(layer, query, key, value, attention_mask, **kwargs):
    """query [batch, heads, tokens, head_dim], key and value [batch, G, tokens, head_dim]: the attention function that
    every layer calls."""
    end(layer)  # kernels look up the model's attention function there, too
    name = layer.config.whole._attn_implementation
    attend = eager_attention_forward if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    batch, _, tokens, head_dim = query.shape
    if layer.head_of_slot != list(range(query.shape[1])):
        query = query.index_select(1, index(layer, "head_of_slot", query.device))  # [batch, G * m, tokens, head_dim]
    seen = layer
    if kwargs.get("s_aux") is not None:  # attention sinks, one for each query head
        kwargs["s_aux"] = kwargs["s_aux"].index_select(0, index(layer, "output_of_slot", query.device))
        seen = WithSinks(layer, kwargs["s_aux"])
    output, weights = attend(seen, query, key, value, attention_mask, **kwargs)
    if layer.padded:
        slot_of_head = index(layer, "slot_of_head", query.device)
        output = output.reshape(batch, tokens, -1, head_dim).index_select(2, slot_of_head)  # serving engines flatten it
        weights = None if weights is None else weights.index_select(1, slot_of_head)
    return output, weights


ALL_ATTENTION_FUNCTIONS.register("grouper_ragged", ragged_attention)


class LayerConfig:
    """The model's configuration as one attention layer sees it: its own head counts, and in a thread where it computes,
    the function above. From outside, where serving engines look, it names the model's attention function."""

    def __init__(self, whole, **own):
        self.__dict__.update(own, whole=whole, computing=False, threads=set())

    @property
    def _attn_implementation(self):
        # a compiler knows no threads; what it compiles may begin outside of it, and the other way round
        here = len(self.threads) > 0 if torch.compiler.is_compiling() else threading.get_ident() in self.threads
        return "grouper_ragged" if self.computing or here else self.whole._attn_implementation

    def __getattr__(self, name):
        if "whole" not in self.__dict__:  # while it is being copied
            raise AttributeError(name)
        return getattr(self.whole, name)


class WithSinks:
    """A layer as a kernel sees it that reads sinks from it: with one for each slot."""

    def __init__(self, layer, sinks):
        self.layer, self.sinks = layer, sinks

    def __getattr__(self, name):
        return getattr(self.layer, name)


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


class RaggedAttention(LlamaAttention):
    def __init__(self, config, layer_idx):
        groups = config.kv_groups[layer_idx]
        counts = {"num_attention_heads": sum(groups), "num_key_value_heads": len(groups)}
        sized = copy.deepcopy(config)
        for name, count in counts.items():
            setattr(sized, name, count)
        super().__init__(sized, layer_idx)
        self.config = LayerConfig(config, **counts)
        self.register_forward_pre_hook(begin)
        self.register_forward_hook(end, always_call=True)
        self.num_key_value_groups = max(groups)
        self.padded, self.indices = len(set(groups)) > 1, {}
        self.head_of_slot, self.slot_of_head = slots(groups)
        self.output_of_slot = self.head_of_slot
        if config.query_of_head:
            self.head_of_slot = [config.query_of_head[layer_idx][head] for head in self.head_of_slot]
            self.num_heads = max(self.head_of_slot) + 1
            self.q_proj = nn.Linear(
                config.hidden_size, self.num_heads * self.head_dim, bias=self.q_proj.bias is not None
            )


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
