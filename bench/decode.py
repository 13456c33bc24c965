"""Decoding with fewer KV heads on a GPU: one layer's attention, whole models, and the largest batches.

    python bench/decode.py                                     # a 7B shape on one GPU: 5 minutes
    python bench/decode.py --shape tiny --device cpu --batches 1,2 --contexts 64 --layers 2    # does it run?

Weights are random, because speed depends on shapes alone. A step decodes one token for every sequence, with `context`
tokens in a static cache. It runs as one CUDA graph, so that launch times do not hide the time for reading bytes.
"native": keys and values go from the cache to the grouped kernel of scaled_dot_product_attention, as in serving
engines. "transformers": its own path for a static cache, whose mask makes it copy K and V for every query head first.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from measured import report
from shapes import SHAPES, Shape
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache
from transformers.initialization import no_init_weights
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from grouper.export.hf.modeling_ragged import RaggedConfig, RaggedForCausalLM, slots
from grouper.kv_cache import largest_batch

WARM_UP, TIMED = 3, 20
PARTS = (2, 4, 8)  # a half, a quarter and an eighth of the KV heads


@dataclass(frozen=True)
class Kind:
    """A layout to time. groups[layer]: number of query heads that read each KV head, without the slots that padding
    adds."""

    name: str
    kv_ratio: float
    groups: list[list[int]]

    @property
    def kv_heads(self) -> int:
        return sum(map(len, self.groups))


def kinds(shape: Shape) -> Iterator[Kind]:
    """The original, and for each ratio one layout of each export class. The ragged one has random group sizes and
    counts."""
    rng = np.random.default_rng(0)
    heads, layers = shape.heads, shape.layers
    yield Kind("original", 1.0, [[1] * heads] * layers)
    for part in PARTS:
        count = heads // part
        if not count:
            continue
        yield Kind("stock", 1 / part, [[part] * count] * layers)
        wider = [part + 1 if i % 2 else part - 1 for i in range(count - count % 2)] + [part] * (count % 2)
        yield Kind("padded", 1 / part, [wider] * layers)
        more = [int(rng.integers(0, count // 4 + 1)) for _ in range(layers // 2)]
        counts = [count + m for m in more] + [count - m for m in more] + [count] * (layers % 2)
        yield Kind("ragged", 1 / part, [random_sizes(rng, heads, c) for c in counts])


def random_sizes(rng: np.random.Generator, heads: int, groups: int) -> list[int]:
    """Random group sizes: every group has one head, and each of the other heads joins a random group."""
    return (1 + np.bincount(rng.integers(0, groups, heads - groups), minlength=groups)).tolist()


def milliseconds(step: Callable[[], object], device: str) -> float:
    """Median time of a step; on a GPU, of the replay of its CUDA graph."""
    with torch.inference_mode():
        for _ in range(WARM_UP):
            step()
        if "cuda" not in device:
            took = []
            for _ in range(TIMED):
                began = time.perf_counter()
                step()
                took.append(time.perf_counter() - began)
            return 1000 * float(np.median(took))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(TIMED)]
        graph.replay()
        for begin, end in events:
            begin.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        return float(np.median([begin.elapsed_time(end) for begin, end in events]))


# One layer's attention


def attention_rows(shape: Shape, batches: list[int], contexts: list[int], device: str, dtype: torch.dtype):
    """Rows for one decoding step: one KV head per query head, equal groups, and as many groups of other sizes."""
    rng = np.random.default_rng(0)
    for batch in batches:
        for context in contexts:
            row = {"batch": batch, "context": context}
            if 4 * batch * context * shape.heads * shape.head_dim > free(device) / 2:
                continue
            row["original ms"] = round(milliseconds(attending([1] * shape.heads, shape, row, device, dtype), device), 4)
            for part in PARTS:
                equal = [part] * (shape.heads // part)
                sizes = random_sizes(rng, shape.heads, len(equal))
                native = milliseconds(attending(equal, shape, row, device, dtype), device)
                ragged = milliseconds(attending(sizes, shape, row, device, dtype), device)
                row[f"1/{part} stock ms"], row[f"1/{part} ragged ms"] = round(native, 4), round(ragged, 4)
                row[f"1/{part} ragged over stock"] = round(ragged / native, 3)
            yield row
            gc.collect()


def attending(sizes: list[int], shape: Shape, row: dict, device: str, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """Step of an exported layer from q_proj to o_proj."""
    made = {"device": device, "dtype": dtype}
    query = torch.randn(row["batch"], shape.heads, 1, shape.head_dim, **made)
    key, value = torch.randn(2, row["batch"], len(sizes), row["context"], shape.head_dim, **made)
    head_of_slot, slot_of_head = (torch.tensor(i, device=device) for i in slots(sizes))

    def attend() -> torch.Tensor:
        if len(set(sizes)) == 1:
            return scaled_dot_product_attention(query, key, value, enable_gqa=sizes[0] > 1)
        spread = query.index_select(1, head_of_slot)
        return scaled_dot_product_attention(spread, key, value, enable_gqa=True).index_select(1, slot_of_head)

    return attend


# Whole models


def native(module, query, key, value, mask, scaling=None, **_ignored):
    """Attention function for transformers: the grouped kernel without a mask, because the cache is full."""
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=grouped).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("native", native)
ALL_MASK_ATTENTION_FUNCTIONS.register("native", lambda *_args, **_kwargs: None)


def model_of(kind: Kind, shape: Shape, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """Model in the class of its export: a Llama, a Llama with more query heads, or the modelling file of ragged
    exports."""
    sizes = {
        "hidden_size": shape.hidden, "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "head_dim": shape.head_dim, "vocab_size": shape.vocabulary,
        "max_position_embeddings": 65_536, "attn_implementation": "native",
    }  # fmt: skip
    if kind.name != "ragged":
        groups = kind.groups[0]
        sizes |= {"num_attention_heads": len(groups) * max(groups), "num_key_value_heads": len(groups)}
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # float32 in between would need twice the memory
    with torch.device(device), no_init_weights():
        if kind.name == "ragged":
            model = RaggedForCausalLM(RaggedConfig(kv_groups=kind.groups, **sizes))
        else:
            # Llama requires heads to divide hidden_size; a padded export's class does not
            sizes["hidden_size"], hidden = sizes["num_attention_heads"] * shape.head_dim, sizes["hidden_size"]
            config = LlamaConfig(**sizes)
            config.hidden_size = hidden
            model = LlamaForCausalLM(config)
    torch.set_default_dtype(default)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02)
    return model.eval()


def model_rows(shape: Shape, batches: list[int], contexts: list[int], device: str, dtype: torch.dtype):
    for kind in kinds(shape):
        model = model_of(kind, shape, device, dtype)
        weights = sum(p.nbytes for p in model.parameters())
        card = torch.cuda.get_device_properties(device).total_memory if "cuda" in device else 10**10
        for context in contexts:
            one = 2 * kind.kv_heads * shape.head_dim * context * dtype.itemsize
            most = largest_batch(card, weights, one)
            for batch in sorted({*(b for b in batches if b <= most), *([most] if most and context == 4096 else [])}):
                row = {
                    "class": kind.name, "KV": f"{kind.kv_ratio:.1%}", "context": context, "batch": batch,
                    "cache GiB": round(batch * one / 2**30, 2), "fits": most,
                }  # fmt: skip
                for path in ("native", "transformers") if batch == batches[len(batches) // 2] else ("native",):
                    took = step_milliseconds(model, batch, context, path, device)
                    row[f"{path} tokens/s"] = None if took is None else round(1000 * batch / took)
                yield {**row, "transformers tokens/s": row.get("transformers tokens/s")}
        del model
        gc.collect()
        if "cuda" in device:
            torch.cuda.empty_cache()


def step_milliseconds(model, batch: int, context: int, path: str, device: str) -> float | None:
    """Milliseconds of a step; None if memory is short or the path cannot be captured in a graph."""
    model.config._attn_implementation = "native" if path == "native" else "sdpa"
    tokens = torch.zeros(batch, 1, dtype=torch.long, device=device)
    position = torch.full((batch, 1), context - 1, device=device)
    try:
        cache = StaticCache(model.config, max_cache_len=context)

        def step() -> torch.Tensor:
            for layer in cache.layers:  # each step writes the last position
                layer.cumulative_length.fill_(context - 1)
            return model(tokens, None, position, cache, use_cache=True).logits  # its name varies by release

        return milliseconds(step, device)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        print(f"{path}, batch {batch}, context {context}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    finally:
        cache = None
        gc.collect()
        if "cuda" in device:
            torch.cuda.empty_cache()


def free(device: str) -> int:
    return torch.cuda.mem_get_info(device)[0] if "cuda" in device else 10**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b", choices=SHAPES)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--batches", default="1,16,64,128")
    parser.add_argument("--contexts", default="1024,4096,32768")
    parser.add_argument("--part", default="attention,models")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    whole = SHAPES[args.shape]
    shape = Shape(args.layers or whole.layers, whole.hidden, whole.heads, whole.kv_heads, whole.inner, whole.vocabulary)
    dtype = torch.bfloat16
    sizes = [list(map(int, given.split(","))) for given in (args.batches, args.contexts)]
    for part, rows in {"attention": attention_rows, "models": model_rows}.items():
        if part in args.part.split(","):
            report(f"decode_{part}", list(rows(shape, *sizes, args.device, dtype)))


if __name__ == "__main__":
    main()
