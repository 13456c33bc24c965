"""Heads of a padded export: its KV heads, and the slots for query heads of each; counts that engines can split.

Engines that split a model over GPUs by tensor parallelism give each GPU an equal number of query heads, and either an
equal number of KV heads or a copy of one. vLLM and SGLang (models/llama.py) and TensorRT-LLM (modules/attention.py)
all ask for query heads that the number of GPUs divides, and for KV heads that it divides or that divide it.
"""

from dataclasses import dataclass

from grouper.errors import GrouperError
from grouper.layout import HeadLayout

MOST_GPUS = 1024


@dataclass(frozen=True)
class Slots:
    """Heads of every layer of a padded export. kv_heads: with zero KV heads, which come last. width: query heads of
    each KV head, with zero ones."""

    kv_heads: int
    width: int

    @property
    def query_heads(self) -> int:
        return self.kv_heads * self.width


def slots_for(layout: HeadLayout, tp: int = 1) -> Slots:
    """Fewest slots that hold a layout of one KV-head count, and that engines can split over `tp` GPUs."""
    check_gpus(tp)
    kv_heads = layout.layers[0].k.kv_heads
    while not can_split(kv_heads, tp):
        kv_heads += 1
    copies = max(1, tp // kv_heads)  # GPUs that hold one KV head
    largest = max(size for layer in layout.layers for size in layer.k.sizes)
    return Slots(kv_heads, -(-largest // copies) * copies)


def can_split(kv_heads: int, tp: int) -> bool:
    """Whether engines can split or copy these KV heads over `tp` GPUs.

    >>> [count for count in range(1, 17) if can_split(count, 4)]
    [1, 2, 4, 8, 12, 16]
    """
    return kv_heads % tp == 0 or tp % kv_heads == 0


def check_gpus(tp: int) -> None:
    """Raise GrouperError for a number of GPUs out of range."""
    if not 1 <= tp <= MOST_GPUS:
        raise GrouperError(f"`tp={tp}`: expected a number of GPUs from 1 to {MOST_GPUS:,}")


def check_model_to_split(config: dict, tp: int) -> None:
    """Raise GrouperError if no layout of the model could be split over `tp` GPUs. config: the decoder's."""
    check_gpus(tp)
    rows, experts = config.get("intermediate_size"), config.get("num_experts") or config.get("num_local_experts")
    if isinstance(rows, int) and rows % tp and not experts:
        raise GrouperError(f"`tp={tp}` does not divide intermediate_size {rows}, so no engine could split the MLP")
