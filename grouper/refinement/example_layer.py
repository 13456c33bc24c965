"""One layer of a model with an encoder under refinement, on examples: each batch keeps what its layer was called with,
since what fills short examples up differs from batch to batch."""

import copy
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from grouper.attention import Attention, MergedLayer
from grouper.calibration.examples import Examples
from grouper.calibration.streams import NOT_OURS, Arguments
from grouper.calibration.text import shuffled_passes
from grouper.layout import LayerLayout
from grouper.model.in_memory import InMemoryModel, expanded_attention, expanded_tensors
from grouper.progress import Progress
from grouper.ranks import ALONE
from grouper.refinement.layer import MEASURED, REST, Beside, Enough, LayerWorker, RefineOptions, relative, size_of

HIDDEN = "hidden_states"


@dataclass
class Batch:
    """examples: of this batch. calls: by layer module, what it was called with in the original, beside the stream.
    entered: by layer module, the stream [examples, tokens, D] that entered it; of the first one of each stack alone.
    """

    examples: Examples
    calls: dict[nn.Module, Arguments] = field(default_factory=dict)
    entered: dict[nn.Module, Tensor] = field(default_factory=dict)

    def arguments(self, place: nn.Module, source: Tensor | None) -> Arguments:
        """source: what takes the place of what the original's encoder gave the decoder, the only stream among them."""

        def changed(value):
            return source if source is not None and is_stream(value) else value

        positional, named = self.calls[place]
        return tuple(map(changed, positional)), {name: changed(value) for name, value in named.items()}


def is_stream(value: object) -> bool:
    """Masks and biases have four dimensions."""
    return isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point()


@dataclass
class Streams:
    """Of the original and of the regrouped model at one layer, batch by batch. sources: what the regrouped model's
    encoder gave its decoder, None within an encoder. masks: what is no filling, None where all is."""

    batches: list[Batch]
    original: list[Tensor]
    regrouped: list[Tensor]
    sources: list[Tensor | None]
    masks: list[Tensor | None]

    @classmethod
    def entering(cls, batches: list[Batch], place: nn.Module, sources: list[Tensor] | None) -> "Streams":
        """The first layer of an encoder, or of a decoder that gets `sources`."""
        original = [batch.entered[place] for batch in batches]
        examples = [batch.examples for batch in batches]
        masks = [e.read if sources is None else e.written for e in examples]
        on_device = [m if m is None else m.to(o.device) for m, o in zip(masks, original)]
        return cls(batches, original, list(original), sources or [None] * len(batches), on_device)


class ExampleWorker(LayerWorker):
    """place: the layer's module in the model. Its attentions are fitted one after the other, `take_up` begins each."""

    def __init__(self, model: InMemoryModel, place: nn.Module, options: RefineOptions):
        self.architecture, self.model, self.place = model.architecture, model, place
        self.options, self.device, self.ranks = options, model.device, ALONE
        self.original = copy.deepcopy(place)
        self.regrouped = copy.deepcopy(place)

    def take_up(self, layer: int, layout: LayerLayout) -> None:
        """Go on with this attention of the layer."""
        a, self.layer, self.layout = self.architecture, layer, layout
        self.family = a.family_of(layer)
        path = self.family.in_class.attention
        attention = self.regrouped.get_submodule(path)
        room = expanded_attention(a, attention, layout, self.device, torch.float32, layer)
        self.regrouped.set_submodule(path, room)
        prefix, checkpoint = a.prefix(self.model.checkpoint, layer), self.model.checkpoint
        stored = [n.removeprefix(prefix) for n in checkpoint.tensors if n.startswith(prefix)]
        self.stored = {self.family.class_name(name): name for name in stored}
        projections = [
            f"{a.family_of(i).class_name(m)}." for i in range(a.layers)
            if a.prefix(checkpoint, i) == prefix for m in a.projections(i)
        ]  # fmt: skip
        # T5's biases of positions are one layer's, and all layers add them
        kept = (*projections, *(n for n in self.stored if "relative_attention_bias" in n))
        self.trainable = {n for n in self.stored if not n.startswith(kept)}

    # Weights

    def tensors(self, attention: Attention) -> dict[str, Tensor]:
        return expanded_tensors(self.architecture, attention, self.layout, self.layer)

    def set(self, done: MergedLayer) -> None:
        """`done` with the names of the class."""
        for name, tensor in (self.tensors(done.attention.to(self.device)) | done.others).items():
            self.regrouped.get_parameter(name).data = tensor.detach().to(self.device, torch.float32)

    def in_class(self, done: MergedLayer) -> MergedLayer:
        """From the names of checkpoints to those of the class."""
        return MergedLayer(done.attention, {self.family.class_name(n): t for n, t in done.others.items()})

    def in_checkpoint(self, done: MergedLayer) -> MergedLayer:
        """And back; with all of the layer's others as they are now, which an attention before may have changed."""
        names = self.trainable if self.options.scope == "block" else ()
        others = {self.stored[n]: self.regrouped.get_parameter(n).detach().cpu().clone() for n in sorted(names)}
        return MergedLayer(done.attention, others, done.before, done.after)

    # Streams

    def called(self, module: nn.Module, stream: Tensor, arguments: Arguments) -> Tensor:
        """The stream behind the whole layer."""
        output = module(stream, *arguments[0], **arguments[1])
        return output[0] if isinstance(output, tuple) else output

    def matched(self, module: nn.Module, stream: Tensor, arguments: Arguments) -> Tensor:
        """What is matched: the stream behind the layer, or just behind this attention."""
        if self.options.scope == "block":
            return self.called(module, stream, arguments)
        found: list[Tensor] = []

        def stop(_module, inputs) -> None:
            found.append(inputs[0])
            raise Enough

        hook = module.get_submodule(self.family.behind).register_forward_pre_hook(stop)
        try:
            with suppress(Enough):
                self.called(module, stream, arguments)
        finally:
            hook.remove()
        return found[0]

    @torch.no_grad()
    def targets(self, streams: Streams) -> list[Tensor]:
        """What the original's layer makes of its stream, once for all steps."""
        wanted, added = [], []
        for batch, stream, mask in zip(streams.batches, streams.original, streams.masks):
            with self.autocast():
                output = self.matched(self.original, stream, batch.arguments(self.place, None)).float()
            wanted.append(output)
            added.append(_relative(output - stream, output, mask).item())
        self.added, self.scale = sum(added[:MEASURED]), max(added[0], 1e-12)
        return wanted

    @torch.no_grad()
    def error(self, wanted: Sequence[Tensor], streams: Streams) -> float:  # type: ignore[override]
        wrong = 0.0
        for i, target in enumerate(wanted[:MEASURED]):
            with self.autocast():
                got = self._got(self.regrouped, streams, i).float()
            wrong += _relative(got - target, target, streams.masks[i]).item()
        return wrong / max(self.added, 1e-30)

    def _got(self, module: nn.Module, streams: Streams, i: int) -> Tensor:
        return self.matched(module, streams.regrouped[i], streams.batches[i].arguments(self.place, streams.sources[i]))

    @torch.no_grad()
    def advance_all(self, streams: Streams) -> None:
        """Both streams to the next layer, in place."""
        for i, batch in enumerate(streams.batches):
            with self.autocast():
                own = self.called(self.original, streams.original[i], batch.arguments(self.place, None))
                arguments = batch.arguments(self.place, streams.sources[i])
                ours = self.called(self.regrouped, streams.regrouped[i], arguments)
            streams.original[i], streams.regrouped[i] = own.float(), ours.float()

    # Fitting

    def descend(  # type: ignore[override]
        self,
        attention: Attention,
        shared: dict[str, Tensor],
        others: dict[str, Tensor],
        wanted: Sequence[Tensor],
        streams: Streams,
        steps: int,
        tell: Progress,
        beside: Sequence[Beside] = (),
    ) -> None:
        """Adam on `shared` and `others`, in place, a batch a step; batches may be of any length, and none is beside."""
        rate = self.options.rate
        rates = [(t, rate * size_of(t)) for t in shared.values()] + [
            (t, rate * REST * size_of(t)) for t in others.values()
        ]
        groups = [{"params": [tensor], "lr": peak} for tensor, peak in rates if peak > 0]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95), fused=True)
        forward = _Matched(self)
        order = shuffled_passes(len(wanted), 1, steps, self.options.seed).flatten().tolist()
        for step, i in enumerate(order):
            for group, (_, peak) in zip(optimizer.param_groups, [r for r in rates if r[1] > 0]):
                group["lr"] = peak * (1 - step / steps)
            state = {**self.tensors(replace(attention, **shared)), **others}
            with self.autocast():
                got = functional_call(forward, {f"module.{n}": t for n, t in state.items()}, (streams, i))
            loss = _relative(got.float() - wanted[i], wanted[i], streams.masks[i]) / self.scale
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            tell(step + 1, steps, f"error {loss.item():.4f}")


class _Matched(nn.Module):
    """What functional_call wants: a module whose forward is the part of the layer that is matched."""

    def __init__(self, worker: ExampleWorker):
        super().__init__()
        self.module, self.worker = worker.regrouped, [worker]

    def forward(self, streams: Streams, i: int) -> Tensor:
        return self.worker[0]._got(self.module, streams, i)


def _relative(difference: Tensor, stream: Tensor, mask: Tensor | None) -> Tensor:
    return relative(difference, stream) if mask is None else relative(difference[mask], stream[mask])


def recorded(model: InMemoryModel, parts: Iterable[Examples], places: list[nn.Module]) -> list[Batch]:
    """A batch of each part, with what every layer of the model, in their order, is called with."""
    decodes, found = bool(model.architecture.family.parts), []
    first = {places[0], places[model.architecture.encoder_layers]} if decodes else {places[0]}
    for part in parts:
        batch = Batch(part)

        def note(module, positional, named, batch=batch) -> None:
            stream = named[HIDDEN] if HIDDEN in named else positional[0]
            rest = positional if HIDDEN in named else positional[1:]
            batch.calls[module] = rest, {n: v for n, v in named.items() if n not in NOT_OURS}
            if module in first:
                batch.entered[module] = stream.float()

        hooks = [place.register_forward_pre_hook(note, with_kwargs=True) for place in places]
        given = part.called_with(model.device, model.dtype, decodes)
        try:
            with torch.no_grad():
                model.model(**given, **({"use_cache": False} if decodes else {}))
        finally:
            for hook in hooks:
                hook.remove()
        found.append(batch)
    return found
