"""Layer-wise reconstruction for models with an encoder, attention by attention.

As in refine.py two streams run side by side, the original's and the regrouped model's. The encoder's layers come first;
what they then give is what the regrouped decoder reads. A decoder's layer has two attentions: its own is fitted first,
then, with that in its place, the one across to the encoder.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from grouper.attention import Merged, MergedLayer
from grouper.calibration.examples import Examples
from grouper.errors import GrouperError
from grouper.layout import HeadLayout
from grouper.model.in_memory import InMemoryModel
from grouper.names import expected
from grouper.progress import Progress, untold
from grouper.refinement.example_layer import ExampleWorker, Streams, recorded
from grouper.refinement.layer import SCOPES, RefineOptions
from grouper.refinement.refine import deterministic
from grouper.refinement.saved import LayersInMemory, RefinedLayers, SavedLayers, save_layer

NOTHING = 1e-9  # an error that there is nothing to gain from


def refine_encoders(
    model: InMemoryModel,
    layout: HeadLayout,
    merged: Merged,
    examples: Examples,
    options: RefineOptions | None = None,
    *,
    folder: Path | None = None,
    progress: Progress = untold,
) -> RefinedLayers:
    """Refine attention by attention; one that training does not improve stays as merged. As `refine_layers`, for models
    with an encoder; by one process, whatever the number of ranks."""
    options = (options or RefineOptions()).for_device(model.device)
    if options.scope not in SCOPES:
        raise GrouperError(f"unknown scope {options.scope!r}: {expected(options.scope, SCOPES)}")
    size, steps = max(1, options.batch_tokens // examples.tokens), options.steps_for(examples.numel())
    layers = range(len(layout.layers))
    places = {model.layer(layer): None for layer in layers}  # in their order
    within = {place: [layer for layer in layers if model.layer(layer) is place] for place in places}
    parts = [examples[i : i + size] for i in range(0, len(examples), size)]
    in_memory, saved = LayersInMemory(), None if folder is None else SavedLayers(folder)
    with deterministic():
        batches, streams = recorded(model, parts, list(places)), None
        for number, place in enumerate(places):
            if streams is None:
                streams = Streams.entering(batches, place, None)
            elif number == model.architecture.encoder_layers:
                streams = Streams.entering(batches, place, [_behind_encoder(model, s) for s in streams.regrouped])
            worker = ExampleWorker(model, place, options)
            for layer in within[place]:
                worker.take_up(layer, layout.layers[layer])
                if saved is not None and layer in saved:
                    worker.set(worker.in_class(saved(layer)))
                    continue

                def tell(step: int, _steps: int, note: str, layer: int = layer) -> None:
                    name = model.architecture.name_of(layer)
                    progress(layer * steps + step, len(layers) * steps, f"refining {name}, {note}")

                wanted, start = worker.targets(streams), merged(layer)
                worker.set(start)
                error = worker.error(wanted, streams)
                fitted = MergedLayer(start.attention, {}, error, error)
                if error > NOTHING:
                    fitted = worker.fit(start.attention, wanted, streams, steps, tell)
                done = worker.in_checkpoint(fitted)
                if saved is None:
                    in_memory[layer] = done.on_cpu()
                else:
                    save_layer(saved.path(layer), done.on_cpu(for_a_while=True))
            worker.advance_all(streams)
    return in_memory if saved is None else saved


@torch.no_grad()
def _behind_encoder(model: InMemoryModel, stream: Tensor) -> Tensor:
    """What a decoder gets of the stream behind the encoder's last layer: some encoders end with a norm."""
    name = model.architecture.family.parts[2].source_norm
    norm: nn.Module | None = None if name is None else model.model.get_submodule(model.prefix + name)
    return stream if norm is None else norm(stream.to(model.dtype)).float()
