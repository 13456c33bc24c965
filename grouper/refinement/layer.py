"""Refinement of one layer: its inputs, its targets, the weights that are trained."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from grouper.attention import Attention, MergedLayer
from grouper.calibration.text import shuffled_passes
from grouper.families.sites import Site
from grouper.layout import LayerLayout
from grouper.progress import Progress, no_progress
from grouper.ranks import ALONE, Ranks
from grouper.refinement.courses import ByPart, Course, Drawn, turns_of
from grouper.refinement.descent import Descent
from grouper.refinement.objective import relative, size_of
from grouper.refinement.options import RefinePlan
from grouper.refinement.sides import Sides
from grouper.refinement.store import WEIGHTS
from grouper.running.in_memory import expanded_attention, expanded_tensors
from grouper.running.stub_layers import Arguments, Enough
from grouper.running.walk import Step, run_layer

REST = 0.3  # learning rate of MLP and norms, relative to that of attention
MEASURED = 16  # parts on which the error of a layer is measured
NOTHING = 1e-9  # error too small to improve


class LayerWorker:
    """One layer on the device: the original, and a copy whose weights are fitted. Its attentions are fitted one after
    the other; `take_up` begins each. Tensors have the names of the class; `set` and `fit` translate to and from the
    names in checkpoints."""

    site: Site
    layout: LayerLayout

    def __init__(self, step: Step, device: str, plan: RefinePlan, ranks: Ranks = ALONE):
        model = step.walk.model
        self.architecture, self.checkpoint = model.architecture, model.checkpoint
        self.plan, self.device, self.ranks = plan, device, ranks
        with step.loaded() as module:
            self.original = copy.deepcopy(module).to(device, torch.float32)
        self.regrouped = copy.deepcopy(self.original)
        first = step.sites[0]
        prefix, named = self.architecture.prefix(self.checkpoint, first.index), dict(self.regrouped.named_parameters())
        stored = (name.removeprefix(prefix) for name in self.checkpoint.tensors if name.startswith(prefix))
        self.stored = {first.family.class_name(name): name for name in stored}
        # T5's biases of positions are one layer's, and all layers add them
        kept = [name for name in self.stored if "relative_attention_bias" in name]
        for site in step.sites:
            kept += [f"{site.family.class_name(m)}." for m in self.architecture.projections(site.index)]
        self.trainable = {n for n in self.stored if n in named and not n.startswith(tuple(kept))}
        self.shares_layer = len(step.sites) > 1

    def take_up(self, site: Site, layout: LayerLayout) -> "LayerWorker":
        """Make this attention the one to fit, with a KV head per query head in the fitted copy; returns self."""
        self.site, self.layout, self.family = site, layout, site.family.in_class
        attention = self.regrouped.get_submodule(self.family.attention)
        room = expanded_attention(self.architecture, attention, layout, self.device, torch.float32, site.index)
        self.regrouped.set_submodule(self.family.attention, room)
        return self

    def autocast(self) -> AbstractContextManager:
        """Autocast to bfloat16 on a GPU, without caching casts, since a captured step must make its own."""
        gpu = "cuda" in str(self.device)
        return torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if gpu else nullcontext()

    # Weights

    def tensors(self, attention: Attention) -> dict[str, Tensor]:
        """Tensors of the attention by name, with a copy of the shared heads for every query head; gradients flow
        through."""
        return expanded_tensors(self.architecture, attention, self.layout, self.site.index)

    def set(self, done: MergedLayer) -> None:
        """Put these weights into the fitted copy. Names in `done` are those of checkpoints."""
        self._put(done.attention, {self.site.family.class_name(n): tensor for n, tensor in done.others.items()})

    def _put(self, attention: Attention, others: dict[str, Tensor]) -> None:
        for name, tensor in (self.tensors(attention.to(self.device)) | others).items():
            self.regrouped.get_parameter(name).data = tensor.detach().to(self.device, torch.float32)

    def _given_out(self, attention: Attention, others: dict[str, Tensor], before: float, after: float) -> MergedLayer:
        """Result with the names of checkpoints. A layer with two attentions returns all its other tensors, since
        fitting the first attention may have changed them."""
        if self.shares_layer and self.plan.scope == "block":
            others = {name: self.regrouped.get_parameter(name).detach().clone() for name in sorted(self.trainable)}
        return MergedLayer(attention, {self.stored[name]: t for name, t in others.items()}, before, after)

    # Streams

    def output(self, module: nn.Module, stream: Tensor, arguments: Arguments) -> Tensor:
        """Stream to match: after the layer (scope "block") or right after the attention."""
        if self.plan.scope == "block":
            return run_layer(module, stream, arguments)
        return self.after_attention(module, stream, arguments)

    def after_attention(self, module: nn.Module, stream: Tensor, arguments: Arguments) -> Tensor:
        """Stream right after the attention; the rest of the layer is not run."""
        found: list[Tensor] = []

        def stop(_module: nn.Module, inputs: tuple, output: Tensor | None = None) -> None:
            found.append(inputs[0] if output is None else output)
            raise Enough

        if self.family.behind:  # a norm that reads this stream
            hook = module.get_submodule(self.family.behind).register_forward_pre_hook(stop)
        else:
            hook = module.get_submodule(self.family.adds or self.family.storage.o).register_forward_hook(stop)
        try:
            with suppress(Enough):
                run_layer(module, stream, arguments)
        finally:
            hook.remove()
        return found[0] if self.family.behind else stream + self.architecture.multiplier * found[0]

    def over_parts(self, sides: Sides, stream: Tensor, work: Callable[[int], float]) -> list[float]:
        """Values of `work`(number) for all parts, shared out among ranks. `work` fills its part of `stream`, which all
        ranks then get."""
        numbers = range(len(sides.parts))
        mine = {number: work(number) for number in self.ranks.share(numbers)}
        for number in numbers:
            self.ranks.send(stream[sides.parts[number]], number % self.ranks.size)
        values = {number: value for of_rank in self.ranks.gather(mine) for number, value in of_rank.items()}
        return [values[number] for number in numbers]

    @torch.no_grad()
    def advance(self, module: nn.Module, step: Step, sides: Sides) -> None:
        """Move a stream through the layer, in place."""

        def work(number: int) -> float:
            with self.autocast():
                step.put(number, step.through(module, number))
            return 0.0

        self.over_parts(sides, step.walk.stream, work)

    @torch.no_grad()
    def set_targets(self, sides: Sides) -> None:
        """Fill `sides.wanted` with the output of the original layer, once for all steps."""

        def work(number: int) -> float:
            stream = sides.walk.stream[sides.parts[number]].to(self.device)
            with self.autocast():
                output = self.output(self.original, stream, sides.own.arguments_of(number)).float()
            measured = number < MEASURED
            added = relative(output - stream, output, sides.own.mask_of(number)).item() if measured else 0.0
            sides.wanted[sides.parts[number]] = output.to(sides.wanted)  # possibly in the place of `stream`
            return added

        added = self.over_parts(sides, sides.wanted, work)
        sides.added, sides.of_first = sum(added[:MEASURED]), max(added[0], 1e-12)

    @torch.no_grad()
    def error(self, every: Sequence[Sides]) -> float:
        """Error of the regrouped stream relative to what the original layer adds, over examples of all lengths, on at
        most 16 parts of each."""
        wrong = 0.0
        for sides in every:
            for number in range(len(sides.parts[:MEASURED])):
                with self.autocast():
                    got = self.got(self.regrouped, sides, number).float()
                target = sides.wanted_of(number)
                wrong += relative(got - target, target, sides.own.mask_of(number)).item()
        return wrong / max(sum(sides.added for sides in every), 1e-30)

    def got(self, module: nn.Module, sides: Sides, number: int) -> Tensor:
        """Output of a layer for a part of the regrouped stream."""
        return self.output(module, sides.given_of(number), sides.ours.arguments_of(number))

    # Fitting

    def fit(self, start: Attention, every: Sequence[Sides], steps: int, tell: Progress = no_progress) -> MergedLayer:
        """Fit the attention in `steps` steps from `start`. Returns `start` if they do not help; on the device.
        every: examples of each length, with their targets set; steps alternate between them."""
        attention = start.to(self.device, torch.float32)
        self._put(attention, {})
        before = self.error(every)
        if before <= NOTHING:
            return self._given_out(attention, {}, before, before)
        shared, others = self.trained(attention)
        untouched = {n: t.detach().clone() for n, t in others.items()}
        self.descend(attention, shared, others, every, steps, tell)
        fitted = attention.with_tensors({n: t.detach() for n, t in shared.items()})
        others = {n: t.detach() for n, t in others.items()}
        self._put(fitted, others)
        after = self.error(every)
        if not self.ranks.first_does(lambda: after < before):
            # the layer was right already, or steps were too large for it: keep it unchanged
            fitted, others, after = attention, {}, before
            self._put(attention, untouched)
        return self._given_out(fitted, others, before, after)

    def trained(self, attention: Attention) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies to train: the weights of the attention and, in scope "block", the other tensors of the layer."""
        fixed = (
            {"planes"} if attention.qk_norm == "all" else {"planes", "q_norm", "k_norm"}
        )  # a gain shared by all heads is fixed
        kept = (n for n in WEIGHTS if getattr(attention, n) is not None and n not in fixed)
        shared = {n: getattr(attention, n).clone().requires_grad_() for n in kept}
        if self.plan.scope != "block":
            return shared, {}
        rest = self.trainable - self.tensors(attention).keys()
        parameters = ((n, p) for n, p in self.regrouped.named_parameters() if n in rest)
        return shared, {n: p.detach().clone().requires_grad_() for n, p in parameters}

    def descend(
        self,
        attention: Attention,
        shared: dict[str, Tensor],
        others: dict[str, Tensor],
        every: Sequence[Sides],
        steps: int,
        tell: Progress,
    ) -> None:
        """Adam on `shared` and `others`, in place."""
        rate = self.plan.rate
        rates = [(t, rate * size_of(t)) for t in shared.values()]
        rates += [(t, rate * REST * size_of(t)) for t in others.values()]
        for tensor, _rate in rates:
            self.ranks.send(tensor.data)
        forward = _Forward(self)

        def outputs(*given: Any) -> Tensor:
            state = {**self.tensors(attention.with_tensors(shared)), **others}
            with self.autocast():
                return functional_call(forward, {f"module.{n}": t for n, t in state.items()}, given).float()

        turns = turns_of([sides.tokens for sides in every], steps, [self.larger(sides) for sides in every])
        scale = every[0].of_first
        courses = [self.course(sides, turns.count(number), outputs, scale) for number, sides in enumerate(every)]
        Descent(rates, courses, turns, self.device, self.ranks).run(tell)

    def course(self, sides: Sides, steps: int, outputs: Callable[..., Tensor], scale: float) -> Course:
        """Data for `steps` steps. outputs(stream, arguments): output of the layer with the weights in training."""
        seed, arguments = self.plan.seed, sides.ours.arguments_of

        def of_part(number: int) -> Tensor:
            target = sides.wanted_of(number)
            got = outputs(sides.given_of(number), arguments(number))
            return relative(got - target, target, sides.ours.mask_of(number)) / scale

        def of_windows(given: Tensor, target: Tensor) -> Tensor:
            return relative(outputs(given, arguments(0)) - target, target) / scale

        if not sides.walk.alike:
            return ByPart(of_part, shuffled_passes(len(sides.parts), 1, steps, seed).flatten(), self.ranks)
        order = shuffled_passes(len(sides.walk), self.windows(sides), steps, seed)
        return Drawn(of_windows, sides.other.stream, sides.wanted, order, self.device, self.ranks)

    def windows(self, sides: Sides, ranks: int | None = None) -> int:
        """Windows of a step: at least one for each of this number of ranks, if there are as many."""
        asked = self.plan.batch_tokens // sides.walk.batch.tokens
        return min(len(sides.walk), max(1, asked, ranks or self.ranks.size))

    def larger(self, sides: Sides) -> float:
        """Size of a step relative to that of a single process."""
        return self.windows(sides) / self.windows(sides, ranks=1) if sides.walk.alike else 1.0


class _Forward(nn.Module):
    """Module for functional_call whose forward is the part of the layer that is matched."""

    def __init__(self, worker: LayerWorker):
        super().__init__()
        self.module, self.worker = worker.regrouped, [worker]

    def forward(self, stream: Tensor, arguments: Arguments) -> Tensor:
        return self.worker[0].output(self.module, stream, arguments)
