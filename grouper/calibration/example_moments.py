"""The second moments of every attention's inputs in a model with an encoder, which is run whole."""

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from grouper.calibration.examples import Examples
from grouper.calibration.input_moments import InputMoments
from grouper.errors import GrouperError
from grouper.model.in_memory import InMemoryModel
from grouper.progress import Progress, untold
from grouper.ranks import ALONE, Ranks
from grouper.threads import side_by_side

BATCH_TOKENS = 2048


@torch.no_grad()
def collect_of_examples(
    model: InMemoryModel, examples: Examples, progress: Progress = untold, ranks: Ranks = ALONE
) -> Iterator[InputMoments]:
    """Attention by attention E[x x^T] of what enters k and v, of what enters q where that is something else, and the K
    heads' inner products; what only fills examples up is left out. Products are float32, sums float64. Several ranks
    share the examples."""
    a, seen = model.architecture, threading.local()  # seen: what this thread's batch made the hooks see
    layers = range(a.layers)
    sums = _Sums(a.layers, a.hidden_size + 1, model.device)
    hooks = [hook for layer in layers for hook in _hooks(model, layer, seen)]

    def run(part: Examples) -> list[dict[str, Tensor]]:
        seen.part, seen.found = part, [{} for _ in layers]
        model.model(**part.called_with(model.device, model.dtype, bool(a.family.parts)), **_uncached(model))
        return seen.found

    size = max(1, BATCH_TOKENS // examples.tokens)
    parts = list(ranks.portion([examples[i : i + size] for i in range(0, len(examples), size)]))
    try:
        for done, found in enumerate(side_by_side(run, parts, model.device), 1):
            sums.add(found)
            progress(done, len(parts), "calibrating")
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        yield sums.moments(layer, ranks, a.name_of(layer))


class _Sums:
    """Of the products of every attention, over batches. size: D + 1."""

    def __init__(self, layers: int, size: int, device: str):
        empty = lambda: torch.zeros(size, size, dtype=torch.float64, device=device)  # noqa: E731
        self.inputs, self.queries = [empty() for _ in range(layers)], [empty() for _ in range(layers)]
        self.keys: list[list[Tensor]] = [[] for _ in range(layers)]

    def add(self, found: list[dict[str, Tensor]]) -> None:
        for layer, of_layer in enumerate(found):
            self.inputs[layer] += of_layer["inputs"].double()
            if "queries" in of_layer:
                self.queries[layer] += of_layer["queries"].double()
            self.keys[layer].append(of_layer["keys"])

    def moments(self, layer: int, ranks: Ranks, name: str) -> InputMoments:
        """Of all ranks. The constant input's own sum is the number of tokens."""
        ranks.add_up(self.inputs[layer])
        ranks.add_up(self.queries[layer])
        if not torch.isfinite(self.inputs[layer]).all() or not torch.isfinite(self.queries[layer]).all():
            raise GrouperError(f"what enters attention in {name} is not finite: weights before it are damaged")
        tokens, written = (int(total[layer][-1, -1].item()) for total in (self.inputs, self.queries))
        keys = torch.cat([part for of_rank in ranks.gather(self.keys[layer]) for part in of_rank])
        mean = lambda total, count: (total / count).float().double().cpu()  # noqa: E731
        queries = InputMoments(mean(self.queries[layer], written), written) if written else None
        return InputMoments(mean(self.inputs[layer], max(tokens, 1)), tokens, keys, queries)


def _hooks(model: InMemoryModel, layer: int, seen: threading.local) -> list:
    """Those that note an attention's products in `seen.found`."""
    a, cache = model.architecture, model.architecture.family_of(layer).cache

    def note_inputs(_module, inputs) -> None:
        mask = seen.part.written if cache == "token" else seen.part.read
        seen.found[layer]["inputs"] = _product(inputs[0], mask)

    def note_queries(_module, inputs) -> None:
        seen.found[layer]["queries"] = _product(inputs[0], seen.part.written)

    def note_keys(_module, _inputs, output) -> None:
        k = output.float().unflatten(-1, (a.kv_heads, a.head_dim))  # [examples, tokens, G, d]
        mask = seen.part.written if cache == "token" else seen.part.read
        k = k if mask is None else k * mask.to(k.device)[..., None, None]
        seen.found[layer]["keys"] = torch.einsum("wtgd,wthd->wgh", k, k).cpu()

    k_proj = model.key_projection(layer)
    hooks = [k_proj.register_forward_pre_hook(note_inputs), k_proj.register_forward_hook(note_keys)]
    if cache == "source":
        hooks.append(model.query_projection(layer).register_forward_pre_hook(note_queries))
    return hooks


def _product(x: Tensor, mask: Tensor | None) -> Tensor:
    """x [examples, tokens, D], mask [examples, tokens] or None. Returns [D + 1, D + 1]."""
    rows = x.float()[mask.to(x.device)] if mask is not None else x.float().flatten(0, -2)
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    return rows.T @ rows


def _uncached(model: InMemoryModel) -> dict[str, bool]:
    return {"use_cache": False} if model.architecture.family.parts else {}
