"""One layer under refinement: what goes in, what is matched, what is trained."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from grouper.attention import Attention, MergedLayer
from grouper.calibration.streams import Arguments, run_layer
from grouper.calibration.text import shuffled_passes
from grouper.errors import GrouperError
from grouper.layout import LayerLayout
from grouper.model.in_memory import expanded_attention, expanded_tensors
from grouper.model.layers import Layers
from grouper.progress import Progress, untold
from grouper.ranks import ALONE, Ranks
from grouper.refinement.descent import Course, Descent
from grouper.refinement.saved import WEIGHTS

SCOPES = {"attention": 0.04, "block": 0.02}  # Adam's step by default: bench/refine_rates.py prints what is best
REST = 0.3  # learning rate of MLP and norms, of attention's
MEASURED = 16  # batches that a layer's error is taken on
TOKENS = {"cpu": 16_384, "cuda": 393_216}
LONG = 0.5  # of the tokens, in long windows


@dataclass(frozen=True)
class RefineOptions:
    """What is None is filled in by device: on a GPU more tokens, the whole block and larger steps.

    scope: "attention" or "block". steps: of Adam per layer; from the number of tokens unless given. lr: Adam's step as
    a share of each tensor's root mean square, falling linearly to 0, so that it does not matter at which scale a tensor
    is kept; by scope unless given, for what is best hardly depends on the number of tokens. batch_tokens: tokens of a
    step. tokens: of calibration text, at most; `long_share` of them in windows as long as a step or the model's
    context, for what lies far back is read otherwise than what is near.
    """

    scope: str | None = None
    steps: int | None = None
    lr: float | None = None
    batch_tokens: int | None = None
    seed: int = 0
    tokens: int | None = None
    long_share: float | None = None

    def __post_init__(self) -> None:
        if self.long_share is not None and not 0 <= self.long_share < 1:
            raise GrouperError(f"--long-share {self.long_share}: expected a share from 0 to below 1")

    def long_window(self, window: int, context: int) -> int:
        """Tokens of a long window, a multiple of the short ones'; 0 where it would be no longer. context: of the model.
        For options that `for_device` filled in."""
        long = min(self.batch_tokens, context) // window * window if self.long_share else 0
        return long if long > window else 0

    def for_device(self, device: str) -> "RefineOptions":
        gpu = "cuda" in str(device)
        return replace(
            self,
            scope=self.scope or ("block" if gpu else "attention"),
            batch_tokens=self.batch_tokens or (4096 if gpu else 1024),
            tokens=self.tokens or TOKENS["cuda" if gpu else "cpu"],
            long_share=LONG if self.long_share is None else self.long_share,
        )

    @property
    def rate(self) -> float:
        return self.lr or SCOPES[self.scope]

    def steps_for(self, tokens: int) -> int:
        """150 steps at 32k tokens, 425 at 131k, 970 at 393k: more text bears more steps."""
        return self.steps or max(20, round(150 * (tokens / 32_768) ** 0.75))


class LayerWorker:
    """One layer on the device: as it came, and with weights that are being fitted."""

    def __init__(
        self,
        model: Layers,
        layer: int,
        layout: LayerLayout,
        arguments: Arguments,
        device: str,
        options: RefineOptions,
        ranks: Ranks = ALONE,
    ):
        self.architecture, self.layout, self.arguments = model.architecture, layout, arguments
        self.options, self.device, self.ranks = options, device, ranks
        with model.loaded(layer) as module:
            self.original = copy.deepcopy(module).to(device, torch.float32)
        self.regrouped = copy.deepcopy(self.original)
        path = self.architecture.family.attention
        attention = self.regrouped.get_submodule(path)
        attention = expanded_attention(self.architecture, attention, layout, device, torch.float32)
        self.regrouped.set_submodule(path, attention)
        stored = model.architecture.prefix(model.checkpoint, layer)
        self.trainable = {n for n, _ in self.regrouped.named_parameters() if f"{stored}{n}" in model.checkpoint}

    def on(self, arguments: Arguments) -> "LayerWorker":
        """The same layer, with the same weights in training, on windows of another length."""
        other = copy.copy(self)
        other.arguments = arguments
        return other

    def autocast(self):
        """bfloat16 on a GPU. Casts are not kept: a captured step must make its own."""
        gpu = "cuda" in str(self.device)
        return torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if gpu else nullcontext()

    # Weights

    def tensors(self, attention: Attention) -> dict[str, Tensor]:
        """The layer's attention tensors by name, every query head with its copy of the shared heads, to which gradients
        flow."""
        return expanded_tensors(self.architecture, attention, self.layout)

    def set(self, done: MergedLayer) -> None:
        for name, tensor in (self.tensors(done.attention.to(self.device)) | done.others).items():
            self.regrouped.get_parameter(name).data = tensor.detach().to(self.device, torch.float32)

    # Streams

    def after_attention(self, module: nn.Module, stream: Tensor) -> Tensor:
        """The stream plus what attention adds to it; the rest of the layer is not run."""
        family = self.architecture.family
        added = []

        def stop(_module, _inputs, output) -> None:
            added.append(output)
            raise Enough

        hook = module.get_submodule(family.adds or family.o).register_forward_hook(stop)
        try:
            with suppress(Enough):
                run_layer(module, stream, self.arguments)
        finally:
            hook.remove()
        return stream + self.architecture.multiplier * added[0]

    def output(self, module: nn.Module, stream: Tensor) -> Tensor:
        """What is matched."""
        if self.options.scope == "block":
            return run_layer(module, stream, self.arguments)
        return self.after_attention(module, stream)

    def batches(self, stream: Tensor) -> Iterator[slice]:
        size = max(1, self.options.batch_tokens // stream.shape[1])
        return (slice(i, i + size) for i in range(0, len(stream), size))

    def over_batches(self, stream: Tensor, work: Callable[[int, slice], float]) -> list[float]:
        """What `work`(number, part), which fills stream[part], gives for every batch; shared by all ranks."""
        parts = list(self.batches(stream))
        mine = {number: work(number, parts[number]) for number in self.ranks.share(range(len(parts)))}
        for number, part in enumerate(parts):
            self.ranks.send(stream[part], number % self.ranks.size)
        values = {number: value for of_rank in self.ranks.gather(mine) for number, value in of_rank.items()}
        return [values[number] for number in range(len(parts))]

    @torch.no_grad()
    def advance(self, module: nn.Module, stream: Tensor) -> None:
        """A stream to the next layer, in place."""

        def work(_number: int, part: slice) -> float:
            with self.autocast():
                stream[part] = run_layer(module, stream[part].to(self.device), self.arguments).to(stream)
            return 0.0

        self.over_batches(stream, work)

    @torch.no_grad()
    def set_targets(self, original: Tensor, wanted: Tensor) -> None:
        """Fill `wanted` [n, tokens, D] with what the original layer makes of its stream, once for all steps. It may be
        `original` itself, which in scope "block" then is at the next layer."""

        def work(number: int, part: slice) -> float:
            came = original[part].to(self.device)
            with self.autocast():
                output = self.output(self.original, came).float()
            added = relative(output - came, output).item() if number < MEASURED else 0.0
            wanted[part] = output.to(wanted)  # which may be where `came` is
            return added

        added = self.over_batches(wanted, work)
        self.added = sum(added[:MEASURED])
        self.scale = max(added[0], 1e-12)

    @torch.no_grad()
    def error(self, wanted: Tensor, regrouped: Tensor) -> float:
        """The regrouped stream's error behind the layer over what the original's layer adds, on at most 16 batches."""
        wrong = 0.0
        for part in list(self.batches(wanted))[:MEASURED]:
            with self.autocast():
                got = self.output(self.regrouped, regrouped[part].to(self.device)).float()
            target = wanted[part].to(self.device)
            wrong += relative(got - target, target).item()
        return wrong / max(self.added, 1e-30)

    def error_on_all(self, wanted: Tensor, regrouped: Tensor, beside: "Sequence[Beside]") -> float:
        """The error on windows of every length."""
        found = self.error(wanted, regrouped)
        if not beside:
            return found
        of = [(found, self.added), *((one.worker.error(one.wanted, one.regrouped), one.worker.added) for one in beside)]
        return sum(error * added for error, added in of) / max(sum(added for _, added in of), 1e-30)

    # Fitting

    def fit(
        self,
        start: Attention,
        wanted: Tensor,
        regrouped: Tensor,
        steps: int,
        tell: Progress = untold,
        beside: "Sequence[Beside]" = (),
    ) -> MergedLayer:
        """The layer's weights after `steps` steps from `start`, or `start` where they do not help; on the device.
        wanted: what `set_targets` filled. regrouped: the stream that enters the layer, [n, tokens, D]. beside: windows
        of other lengths, which take their turns."""
        attention = start.to(self.device, torch.float32)
        self.set(MergedLayer(attention))
        before = self.error_on_all(wanted, regrouped, beside)
        shared, others = self.trained(attention)
        untouched = {n: t.detach().clone() for n, t in others.items()}
        self.descend(attention, shared, others, wanted, regrouped, steps, tell, beside)
        fitted = replace(attention, **{n: t.detach() for n, t in shared.items()})
        done = MergedLayer(fitted, {n: t.detach() for n, t in others.items()}, before)
        self.set(done)
        done.after = self.error_on_all(wanted, regrouped, beside)
        if not self.ranks.first_does(
            lambda: done.after < before
        ):  # a layer that was right already, or steps too large for it: as it was
            done = MergedLayer(attention, {}, before, before)
            self.set(MergedLayer(attention, untouched))
        return done

    def trained(self, attention: Attention) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies to train: of attention's own weights, and in scope "block" of the layer's others."""
        fixed = (
            {"planes"} if attention.qk_norm == "all" else {"planes", "q_norm", "k_norm"}
        )  # a gain of all heads is fixed
        kept = (n for n in WEIGHTS if getattr(attention, n) is not None and n not in fixed)
        shared = {n: getattr(attention, n).clone().requires_grad_() for n in kept}
        if self.options.scope != "block":
            return shared, {}
        rest = self.trainable - self.tensors(attention).keys()
        parameters = ((n, p) for n, p in self.regrouped.named_parameters() if n in rest)
        return shared, {n: p.detach().clone().requires_grad_() for n, p in parameters}

    def descend(
        self,
        attention: Attention,
        shared: dict[str, Tensor],
        others: dict[str, Tensor],
        wanted: Tensor,
        regrouped: Tensor,
        steps: int,
        tell: Progress,
        beside: "Sequence[Beside]" = (),
    ) -> None:
        """Adam on `shared` and `others`, in place."""
        rate = self.options.rate
        rates = [(t, rate * size_of(t)) for t in shared.values()]
        rates += [(t, rate * REST * size_of(t)) for t in others.values()]

        def course(one: Beside, steps: int) -> Course:
            forward = _Forward(one.worker)

            def loss(given: Tensor, target: Tensor) -> Tensor:
                state = {**self.tensors(replace(attention, **shared)), **others}
                with self.autocast():
                    got = functional_call(forward, {f"module.{n}": t for n, t in state.items()}, (given,))
                return relative(got.float() - target, target) / self.scale

            windows, tokens = one.wanted.shape[:2]
            size = min(windows, max(1, self.options.batch_tokens // tokens))
            order = shuffled_passes(windows, size, steps, self.options.seed)
            return Course(loss, one.regrouped, one.wanted, order, self.device, self.ranks)

        for tensor, _rate in rates:
            self.ranks.send(tensor.data)
        every = [Beside(self, wanted, regrouped), *beside]
        turns = turns_of([one.wanted.shape[:2].numel() for one in every], steps)
        courses = [course(one, turns.count(number)) for number, one in enumerate(every)]
        Descent(rates, courses, turns, self.device, self.ranks).run(tell)


class Beside(NamedTuple):
    """The same layer on windows of another length. wanted, regrouped: as `fit` has them."""

    worker: LayerWorker
    wanted: Tensor
    regrouped: Tensor


def turns_of(tokens: Sequence[int], steps: int) -> list[int]:
    """Which of several texts each step is on: each text as often as it has tokens, its steps spread over all.

    >>> turns_of([300, 100], 8), turns_of([100], 3)
    ([0, 0, 1, 0, 0, 0, 1, 0], [0, 0, 0])
    """
    taken, turns = [0] * len(tokens), []
    for step in range(1, steps + 1):
        behind = [share * step / sum(tokens) - done for share, done in zip(tokens, taken)]
        turns.append(behind.index(max(behind)))
        taken[turns[-1]] += 1
    return turns


class Enough(Exception):
    """What attention adds is known."""


class _Forward(nn.Module):
    """What functional_call wants: a module whose forward is the part of the layer that is matched."""

    def __init__(self, worker: LayerWorker):
        super().__init__()
        self.module, self.worker = worker.regrouped, [worker]

    def forward(self, stream: Tensor) -> Tensor:
        return self.worker[0].output(self.module, stream)


def relative(difference: Tensor, stream: Tensor) -> Tensor:
    """Mean over tokens of |difference|^2 / |stream|^2: the next norm divides by the stream's size, and so a few tokens
    of a thousandfold size, which real models have, must not drown the others."""
    wrong, size = (torch.linalg.vector_norm(x, dim=-1).square() for x in (difference, stream))
    return (wrong / size.clamp_min(1e-12)).mean()


def size_of(tensor: Tensor) -> float:
    """Root mean square."""
    return float(tensor.detach().square().mean().sqrt())
