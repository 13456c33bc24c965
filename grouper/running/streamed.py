"""Transformers model whose layers are read from disk one at a time, for models that do not fit into memory.

Everything outside the layers (embedding, last norm, head) is in memory. The layers themselves are skeletons without
weights; `loaded` yields one of them with its weights while the next one is being read. Such a model is walked layer by
layer over a residual stream, by the same code as a model in memory (grouper.running.walk).
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from grouper.checkpoint.checkpoint import Checkpoint, decoder_prefix
from grouper.errors import as_one_line
from grouper.families.architecture import Architecture
from grouper.model.loadable import quiet, without_weights
from grouper.model.loading import refusing_code
from grouper.model.one_layer import of_layer
from grouper.running.layers import Layers

State = dict[str, torch.Tensor]
READERS = 4  # tensors of a layer read in parallel


class Skeleton(Layers):
    """Skeleton of a model. `model`: instance of the checkpoint's class, without weights. architecture: names of tensors
    in the original model, which an exported model keeps. own_code: whether the folder's modelling file is ours and may
    run."""

    def __init__(self, checkpoint: Checkpoint, architecture: Architecture, own_code: bool = False, device: str = "cpu"):
        self.checkpoint, self.architecture = checkpoint.local(), architecture
        self.device, self.dtype = device, torch.float32
        with as_one_line(f"transformers cannot open {checkpoint.name}"):
            self.model = without_weights(self.checkpoint, own_code, dtype=self.dtype)
        self.model.requires_grad_(False)
        self.prefix = decoder_prefix((n for n, _ in self.model.named_parameters()), self.layer_name(0))

    def layer_name(self, layer: int) -> str:
        """Prefix in the class of the layer that contains this attention."""
        site = self.architecture.sites[layer]
        return site.family.in_class.layer.format(layer=site.layer)

    def stored(self, layer: int) -> dict[str, str]:
        """Names of the layer's tensors in the checkpoint, by their names within the layer in the class."""
        here, family = self.architecture.prefix(self.checkpoint, layer), self.architecture.family_of(layer)
        names = (n for n in self.checkpoint.tensors if n.startswith(here))
        return {family.class_name(name.removeprefix(here)): name for name in names}

    def loaded(self, layer: int) -> AbstractContextManager[nn.Module]:
        return self.filled(layer, self.state(layer))

    def has(self, layer: int, name: str) -> bool:
        """Whether the layer's module has a parameter of this name."""
        return name in dict(self.layer(layer).named_parameters())

    def state(self, layer: int) -> State:
        """Tensors of the layer by their names in the module, in this model's dtype."""
        stored, names = self.stored(layer), [name for name, _ in self.layer(layer).named_parameters()]
        if not stored.keys() >= set(names):
            first = next(s for s in self.architecture.sites if s.stack == self.architecture.sites[layer].stack)
            module = self.one_layer(layer).get_submodule(self.prefix + self.layer_name(first.index).rstrip("."))
            return {name: parameter.detach() for name, parameter in module.named_parameters()}
        return {name: self.checkpoint.tensor(stored[name]).to(self.dtype) for name in names}

    def is_stored_so(self, layer: int) -> bool:
        """Whether checkpoints store the layer's tensors under the names of the module. Some classes stack or rename
        them."""
        return self.stored(layer).keys() >= {name for name, _ in self.layer(layer).named_parameters()}

    def one_layer(self, layer: int, around: bool = False) -> nn.Module:
        """Model of this layer alone, loaded by transformers, which handles renamed, stacked and tied tensors. around:
        also load the tensors outside the layers; otherwise they are random."""
        a, checkpoint = self.architecture, self.checkpoint
        firsts = {place[0].stack: place[0] for place in reversed(a.places)}  # first layer of each stack
        shown = {**firsts, a.sites[layer].stack: a.sites[layer]}
        state: State = {}
        for stack, site in shown.items():
            here, first = (a.prefix(checkpoint, s.index) for s in (site, firsts[stack]))
            names = (n for n in checkpoint.tensors if n.startswith(here))
            state |= {first + n.removeprefix(here): checkpoint.tensor(n) for n in names}
        if around:
            every = tuple(a.prefix(checkpoint, other) for other in range(a.layers))
            state |= {n: checkpoint.tensor(n) for n in checkpoint.tensors if not n.startswith(every)}
        config = of_layer(checkpoint.config, layer)
        if a.nested and isinstance(config.get("text_config"), dict):
            config["text_config"] = of_layer(config["text_config"], layer)
        described = type(self.model.config).from_dict(config)
        with (
            quiet(),
            as_one_line(f"transformers cannot load layer {layer} of {checkpoint.name}"),
            refusing_code(checkpoint.name),
        ):
            return type(self.model).from_pretrained(
                None, config=described, state_dict=state, dtype=self.dtype, trust_remote_code=False
            )

    def fill_positions(self) -> None:
        """Load the small modules outside the layers, such as positions and norms. Embedding and head are skipped,
        because they are large."""
        stem = self.architecture.prefix(self.checkpoint, 0).removesuffix(self.layer_name(0))
        large = {id(m.weight) for m in (self.model.get_input_embeddings(), self.model.get_output_embeddings()) if m}
        renamed = []
        for name, parameter in list(self.model.named_parameters()):
            stored = stem + name.removeprefix(self.prefix)
            if id(parameter) in large or name.startswith(self.layers_begin):
                continue
            if stored in self.checkpoint:
                self._set(name, self.checkpoint.tensor(stored).to(self.dtype))
            else:
                renamed.append(name)
        if renamed and self.architecture.family.renamed:  # only transformers knows how these are called
            around = dict(self.one_layer(0, around=True).named_parameters())
            for name in renamed:
                self._set(name, around[name].detach())

    def _set(self, name: str, tensor: torch.Tensor) -> None:
        owner, _, last = name.rpartition(".")
        parameter = nn.Parameter(tensor.to(self.device), requires_grad=False)
        self.model.get_submodule(owner)._parameters[last] = parameter

    @contextmanager
    def filled(self, layer: int, state: State) -> Iterator[nn.Module]:
        """The layer with these weights until the block ends."""
        module = self.layer(layer)
        places = {n: (module.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2]) for n in state}
        empty = {name: owner._parameters[last] for name, (owner, last) in places.items()}
        try:
            for name, (owner, last) in places.items():
                tensor = state[name].to(self.device).to(self.dtype)
                owner._parameters[last] = nn.Parameter(tensor, requires_grad=False)
            yield module
        finally:
            for name, (owner, last) in places.items():
                owner._parameters[last] = empty[name]


class StreamedModel(Skeleton):
    """Skeleton whose layers are loaded completely, in float32, and whose other modules are all in memory."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu"):
        super().__init__(checkpoint, Architecture.of(checkpoint.config), device=device)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="layers")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="tensors")
        self._ahead: tuple[int, Future] | None = None
        self._fill_what_stands_around()

    def _fill_what_stands_around(self) -> None:
        """Load everything except the layers by transformers, which handles renamed and tied tensors."""
        around = dict(self.one_layer(0, around=True).named_parameters())
        for name, parameter in list(self.model.named_parameters()):
            if parameter.is_meta and name in around and not name.startswith(self.layers_begin):
                self._set(name, around[name].detach())
        self.model.tie_weights()
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[name] = buffer.to(self.device)

    def _state(self, layer: int) -> State:
        """Tensors of the layer by their names in the module, in float32. For a GPU they keep their stored dtype,
        because the GPU converts them fast. They are on the CPU: this runs in a thread, and another thread may be
        capturing a graph."""
        stored, names = self.stored(layer), [name for name, _ in self.layer(layer).named_parameters()]

        def read(name: str) -> torch.Tensor:
            tensor = self.checkpoint.tensor(stored[name])
            return tensor if "cuda" in str(self.device) else tensor.to(self.dtype)

        return dict(zip(names, self._readers.map(read, names)))

    def _read(self, layer: int) -> State:
        """Weights of a layer: from the reader thread if it has been reading this layer, which then starts on the next.
        Loading by transformers stays in this thread, because it patches torch modules while it runs."""
        if not self.is_stored_so(layer):
            return self.state(layer)
        ahead, self._ahead = self._ahead, None
        state = ahead[1].result() if ahead and ahead[0] == layer else self._state(layer)
        after = next((place[0].index for place in self.architecture.places if place[0].index > layer), None)
        if after is not None and self.is_stored_so(after):
            self._ahead = after, self._reader.submit(self._state, after)
        return state

    def loaded(self, layer: int) -> AbstractContextManager[nn.Module]:
        return self.filled(layer, self._read(layer))
