"""Second moments of the inputs of every attention, collected in one walk over a batch and cached on disk."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from grouper.calibration.input_moments import MeasuredInputs
from grouper.errors import GrouperError
from grouper.families.sites import Site
from grouper.outputs import sweep_files
from grouper.progress import Progress, no_progress
from grouper.ranks import ALONE, Ranks
from grouper.running.batch import Batch
from grouper.running.layers import Layers
from grouper.running.walk import Step, Walk
from grouper.threads import side_by_side

BATCH_TOKENS = 4096
Found = dict[str, Tensor]  # of one part and one attention: products of "inputs" and "queries", and "keys"


def collect_moments(
    model: Layers, batch: Tensor | Batch, progress: Progress = no_progress, ranks: Ranks = ALONE
) -> Iterator[MeasuredInputs]:
    """Collect, attention by attention, E[x x^T] of the inputs of q, k and v (separately for q if its inputs differ),
    and inner products of the K heads. Padding is left out. batch: windows [n, tokens] of ids, or inputs of an encoder.

    Products are computed in float32, sums in float64, and results are rounded to float32. On a GPU, layers run in
    bfloat16. Of the activations, only the residual stream is kept. Each rank runs its portion of the batches; all ranks
    get the complete sums.
    """
    whole = Batch.of(batch)
    size = max(1, BATCH_TOKENS // whole.tokens)
    mine = [row for part in ranks.portion(torch.arange(len(whole)).split(size)) for row in part.tolist()]
    walk = Walk(model, whole[mine], size)
    for step in walk:
        sums = [_Sums(site, model) for site in step.sites]
        for found in _passed(step, model):
            for of_site, one in zip(sums, found):
                of_site.add(one)
        name = step.sites[0].name
        progress(step.sites[-1].index + 1, model.architecture.layers, f"calibrating, {name}")
        for of_site in sums:
            yield of_site.moments(ranks)


@torch.no_grad()
def _passed(step: Step, model: Layers) -> Iterator[list[Found]]:
    """Advance the stream through the layer. Yields the products of its attentions for each part."""
    gpu, seen = "cuda" in str(model.device), threading.local()  # values that the hooks recorded for this thread's part

    def run(number: int) -> list[Found]:
        seen.part, seen.found = step.walk.batch[step.walk.parts[number]], [{} for _ in step.sites]
        with torch.autocast("cuda", torch.bfloat16) if gpu else nullcontext():
            behind = step.through(module, number)
        step.put(number, behind)
        return seen.found

    with step.loaded() as module, ExitStack() as hooks:
        for place, site in enumerate(step.sites):
            for hook in _hooks(model, site, place, seen):
                hooks.callback(hook.remove)
        yield from side_by_side(run, range(len(step.walk.parts)), model.device)


def _hooks(model: Layers, site: Site, place: int, seen: threading.local) -> list:
    """Hooks that store the products of an attention in `seen.found[place]`."""
    a = model.architecture

    def mask(stack: int) -> Tensor | None:
        return seen.part.written if stack else seen.part.read

    def note_inputs(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.found[place]["inputs"] = _product(inputs[0], mask(site.cache == "token" and site.stack))

    def note_queries(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.found[place]["queries"] = _product(inputs[0], mask(site.stack))

    def note_keys(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        k = a.key_outputs(output.float())  # [examples, G, d, tokens]
        read = mask(site.cache == "token" and site.stack)
        k = k if read is None else k * read.to(k.device)[:, None, None]
        seen.found[place]["keys"] = torch.einsum("wgdt,whdt->wgh", k, k).cpu()

    k_proj = model.key_projection(site.index)
    hooks = [k_proj.register_forward_pre_hook(note_inputs), k_proj.register_forward_hook(note_keys)]
    if site.cache == "source":
        hooks.append(model.query_projection(site.index).register_forward_pre_hook(note_queries))
    return hooks


def _product(x: Tensor, mask: Tensor | None) -> Tensor:
    """Sum of x x^T with a constant 1 appended [D + 1, D + 1]. x: [examples, tokens, D]. mask: [examples, tokens], or
    None."""
    rows = x.float()[mask.to(x.device)] if mask is not None else x.float().flatten(0, -2)
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    return rows.T @ rows


class _Sums:
    """Sums of one attention's products over parts."""

    def __init__(self, site: Site, model: Layers):
        size = model.architecture.hidden_size + 1
        self.site = site
        self.keys: list[Tensor] = []
        names = ("inputs", "queries") if site.cache == "source" else ("inputs",)
        self.totals = {name: torch.zeros(size, size, dtype=torch.float64, device=model.device) for name in names}

    def add(self, found: Found) -> None:
        for name, total in self.totals.items():
            total += found[name].double()
        self.keys.append(found["keys"])

    def moments(self, ranks: Ranks) -> MeasuredInputs:
        """Moments over all ranks. The sum of the constant input is the number of tokens."""
        for total in self.totals.values():
            ranks.add_up(total)
            if not torch.isfinite(total).all():
                raise GrouperError(f"what enters {self.site.name} is not finite: weights before it are damaged")
        tokens = {name: int(total[-1, -1].item()) for name, total in self.totals.items()}
        means = {name: (t / max(tokens[name], 1)).float().double().cpu() for name, t in self.totals.items()}
        keys = torch.cat([part for of_rank in ranks.gather(self.keys) for part in of_rank])
        queries = MeasuredInputs(means["queries"], tokens["queries"]) if tokens.get("queries") else None
        return MeasuredInputs(means["inputs"], tokens["inputs"], keys, queries)


class KeptMoments:
    """Folder with one file of moments per attention, read on demand."""

    def __init__(self, folder: Path, layers: int):
        self.folder, self.layers = folder, layers

    def path(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:03}.safetensors"

    def __len__(self) -> int:
        return self.layers

    def __getitem__(self, layer: int) -> MeasuredInputs:
        if not 0 <= layer < self.layers:
            raise IndexError(layer)
        return MeasuredInputs.load(self.path(layer))

    @property
    def nbytes(self) -> int:
        """Size on disk in bytes."""
        return sum(self.path(layer).stat().st_size for layer in range(self.layers))

    @property
    def complete(self) -> bool:
        return all(self.path(layer).is_file() for layer in range(self.layers))

    def keep(
        self, moments: Iterable[MeasuredInputs], tell: Callable[[int], None] = lambda layer: None
    ) -> "KeptMoments":
        """Write the moments as they arrive, each file completely or not at all, and call `tell` with each layer that
        can now be read. After an interruption the finished files stay; a later call overwrites them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep_files(self.folder)
        for layer, inputs in enumerate(moments):
            inputs.save(self.path(layer))
            tell(layer)
        return self
