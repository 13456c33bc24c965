"""Proof of a family on a small model of its class, by the code that reads, merges, exports and tests real models.

Reading and writing unchanged gives the same logits. What is said to be free changes none, and what is not said to be
free does: RoPE in its other order, a fused module in its other one. Heads that are copies of one another, up to what is
free, merge without loss. Layouts of each class that is offered give what an index-gather reference gives, whole and
layer by layer, and a cache filled step by step what one pass gives. Raises GrouperError that names the step."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from grouper.attention import Attention, MergedLayer
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.checkpoint.shards import write_shards
from grouper.errors import GrouperError, as_one_line
from grouper.export.format import ExportOptions
from grouper.export.whole_test import load_exported
from grouper.export.write import export_model
from grouper.families.architecture import Architecture
from grouper.families.configuration import trying
from grouper.families.derived.candidate import Candidate
from grouper.families.derived.planted import copied, turned
from grouper.families.derived.positions import ORDERS
from grouper.families.derived.stored_names import as_stored
from grouper.families.family import Family
from grouper.families.storage import Fused
from grouper.layout import HeadLayout
from grouper.model.dummy_inputs import answer, random_inputs
from grouper.model.loadable import check_model, quiet
from grouper.running.in_memory import InMemoryModel
from grouper.running.kept_cache import NAMES as CACHES

SAME, OTHER = 1e-4, 1e-3  # logits: the most that rounding does, and the least that a mistake must do
LAYOUTS = {"stock": [[0, 1, 0, 1], [0, 1, 1, 0]], "padded": [[0, 0, 1, 0], [0, 1, 1, 1]],
           "ragged": [[0, 0, 1, 0], [0, 1, 2, 1]]}  # fmt: skip
TOKENS, STEPS = 20, 4


def prove(candidate: Candidate, folder: Path) -> Family:
    """The family, with the export classes that it can have. folder: an empty one for models."""
    with trying(candidate.family), quiet():
        proof = Proof(candidate.family, folder)
        with step("its small model can be saved"):
            candidate.model.float().save_pretrained(proof.original)
    family = as_stored(candidate.family, candidate.model, proof.checkpoint)
    if proof.checkpoint.config.get("model_type") != family.model_type:
        raise GrouperError(f"its models are saved as {proof.checkpoint.config.get('model_type')}")
    with trying(family), quiet():
        Proof(family, folder).run()
    try:
        with trying(family), quiet():
            return Proof(family, folder).offered()
    except GrouperError:
        if family.cache != "none" or family.repeats:
            raise
    again = replace(family, repeats=True)
    with trying(again), quiet():
        return Proof(again, folder, folder / "repeated").offered()


@contextmanager
def step(claim: str) -> Iterator[None]:
    """Name the step of the proof that an error in the block belongs to."""
    try:
        with as_one_line("it ended in an error"):
            yield
    except GrouperError as error:
        raise GrouperError(f"the proof that {claim} failed: {error}") from error


class Proof:
    """One try. folder: of the saved model. out: for exports."""

    def __init__(self, family: Family, folder: Path, out: Path | None = None):
        self.family, self.folder, self.original = family, out or folder, folder / "original"
        self.folder.mkdir(exist_ok=True)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.open(self.original)

    @cached_property
    def architecture(self) -> Architecture:
        return Architecture.of(self.checkpoint.config)

    @cached_property
    def model(self) -> InMemoryModel:
        return InMemoryModel(self.checkpoint, dtype=torch.float64)

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Two examples of the model's inputs."""
        return random_inputs(self.model.model, self.architecture, TOKENS)

    def run(self) -> None:
        """Everything that does not depend on the export class."""
        with step("transformers finds every tensor of it"):
            check_model(self.checkpoint)
        a, wanted = self.architecture, self.logits(lambda one: one)
        plain = answered(self.model.model, self.inputs)
        with step("attention that is read and put back gives the same logits"):
            self.compare(wanted, plain)
        with step("what its positions and norms leave free changes no logit"):
            self.compare(self.logits(turned), plain)
        for name, family in wrong(self.family):
            with step(f"{name} does not do as well"):
                found = self.logits(turned, replace(a, family=family))
                if not float((found - plain).abs().max()) > OTHER:
                    raise GrouperError("it does, so that nothing tells them apart")

    def logits(self, change: Callable[[Attention], Attention], of: Architecture | None = None) -> Tensor:
        """Logits with each layer's attention changed, in float64. of: architecture that reads it."""
        a, reads = self.architecture, of or self.architecture

        def merged(layer: int) -> MergedLayer:
            return MergedLayer(change(reads.read(self.checkpoint, layer)).to(torch.float64))

        writes, self.model.architecture = self.model.architecture, reads
        try:
            with self.model.installed(a.ungrouped, merged) as installed:
                return answered(installed, self.inputs)
        finally:
            self.model.architecture = writes

    def logits_of(self, folder: Path) -> Tensor:
        """Logits of a folder's model, in float64."""
        return answered(load_exported(folder, torch.float64), self.inputs)

    def compare(self, found: Tensor, wanted: Tensor) -> None:
        difference = float((found - wanted).abs().max())
        if not difference < SAME:
            raise GrouperError(f"logits differ by {difference:.2g}")

    # Exports

    def offered(self) -> Family:
        """Family with the classes whose exports pass. Raises GrouperError if none does."""
        family, why = self.family, []
        self.planted("stock" if family.stock else "ragged")
        for name, without in (("padded", {"padded": None}), ("ragged", {"ragged": False})):
            if name not in family.export_classes(self.architecture.as_phi):
                continue
            try:
                self.exported(name)
            except GrouperError as error:
                why.append(error)
                family = replace(family, **without)
        if family.stock:
            self.exported("stock")
        elif not family.ragged:
            raise why[-1]
        return family

    def layout(self, name: str) -> HeadLayout:
        """A layout that allows this class, for as many layers as there are."""
        a = self.architecture
        rows = [[g for g in LAYOUTS[name][i % 2] for _ in range(a.kv_heads // 4)] for i in range(a.layers)]
        return HeadLayout.from_labels(rows, a.query_heads, a.head_dim)

    def planted(self, name: str) -> None:
        """Copies up to what is free merge without loss; and nothing merged is the original."""
        a, layout = self.architecture, self.layout("stock")
        labels = [[g for g in LAYOUTS["stock"][i % 2] for _ in range(a.kv_heads // 4)] for i in range(a.layers)]
        with step("an export of its own heads gives its logits"):
            export_model(self.original, a.ungrouped, self.folder / "same", merge="mean")
            self.compare(self.logits_of(self.folder / "same"), self.logits_of(self.original))
        with step("heads that are copies up to what is free merge without loss"):
            planted = self.folder / "planted"
            self.write(planted, lambda layer, one: turned(copied(one, labels[layer]), seed=layer))
            export_model(planted, layout, self.folder / "merged", merge="spectral")
            self.compare(self.logits_of(self.folder / "merged"), self.logits_of(planted))

    def write(self, target: Path, change: Callable[[int, Attention], Attention]) -> None:
        """Write the model with each layer's attention changed."""
        a, tensors = self.architecture, {n: self.checkpoint.tensor(n) for n in self.checkpoint.tensors}
        for layer in range(a.layers):
            attention = change(layer, a.read(self.checkpoint, layer))
            for name, tensor in a.tensors(a.prefix(self.checkpoint, layer), attention, layer):
                tensors[name] = tensor.to(tensors[name].dtype).contiguous()
        target.mkdir()
        list(write_shards(target, iter(tensors.items()), 2**40))
        (target / "config.json").write_bytes((self.original / "config.json").read_bytes())

    def exported(self, name: str) -> None:
        """A layout of this class, tested whole, layer by layer and with a cache."""
        layout, out = self.layout(name), self.folder / name
        with step(f"a layout of class {name} gives what its reference gives"):
            options = ExportOptions(max_padding=9.0)
            done = export_model(self.original, layout, out, merge="mean", options=options)
            if done.export_class != name:
                raise GrouperError(done.note or f"it was written as {done.export_class}")
        if self.family.encodes:
            return
        with step(f"a layout of class {name} gives it layer by layer, too"):
            options = ExportOptions(max_padding=9.0, self_test_memory=0)
            export_model(self.original, layout, self.folder / f"{name}-parts", merge="mean", options=options)
        with step(f"a cache of class {name} filled step by step gives what one pass gives"):
            self.check_steps(out, layout)

    @torch.inference_mode()
    def check_steps(self, folder: Path, layout: HeadLayout) -> None:
        """Logits of the last tokens one by one, and the heads in the cache."""
        model, tokens = load_exported(folder, torch.float64), self.inputs["input_ids"]
        whole = model(input_ids=tokens, use_cache=False).logits[:, -STEPS:]
        cache, steps = model(input_ids=tokens[:, :-STEPS], use_cache=True)[1], []
        for token in tokens[:, -STEPS:].T:
            steps.append(model(input_ids=token[:, None], use_cache=True, **{_cache_name(model): cache}).logits)
        self.compare(torch.cat(steps, dim=1), whole)
        held = [layer.keys.shape[1] for layer in cache.layers]
        wanted = [layer.k.kv_heads for layer in layout.layers]
        if held != wanted:
            raise GrouperError(f"the cache holds {held} heads, expected {wanted}")


def wrong(family: Family) -> Iterator[tuple[str, Family]]:
    """Families that differ in what cannot be told by looking, with names for people."""
    if family.position == "rope":
        other = ORDERS[1 - ORDERS.index(family.rope)]
        yield "the other order of RoPE's planes", replace(family, rope=other)
    if isinstance(family.storage, Fused):
        flipped = replace(family.storage, per_group=not family.storage.per_group)
        yield "the other order of the fused module", replace(family, storage=flipped)


def _cache_name(model: torch.nn.Module) -> str:
    """Name of the cache's argument in this release of transformers."""
    named = inspect.signature(model.forward).parameters
    return next(name for name in CACHES if name in named)


@torch.inference_mode()
def answered(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Answer of a model in one pass."""
    return answer(model(**inputs))
