"""The last step of an export: load what was written as a user would, and compare with an independent reference.

The reference is the original class with one K and V head per query head, gathered by index from the merged weights,
rounded as they were written: it shares neither the exported model's attention nor its order of heads. Both run in
float64: in float32 a merged real model can amplify rounding itself beyond the tolerance.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from grouper.attention import Merged, MergedLayer
from grouper.errors import GrouperError
from grouper.export.format import NOTHING, TOLERANCE, SelfTest, changed
from grouper.export.hf import ragged
from grouper.export.hf.as_phi import phi_tensors
from grouper.export.hf.stock import grouped_order
from grouper.export.part_test import run_part_test
from grouper.layout import HeadLayout
from grouper.model.architecture import Architecture
from grouper.model.checkpoint import Checkpoint
from grouper.model.configuration import decoder_config
from grouper.model.families import FAMILIES
from grouper.model.in_memory import InMemoryModel, in_double
from grouper.model.made_up import answer, random_inputs
from grouper.model.memory import free_memory
from grouper.model.one_layer import cut
from grouper.model.shards import Stored

PROMPT, GENERATED = 48, 16  # tokens
MEMORY = 4e9  # bytes that whole models may take


def run_self_test(
    original: Checkpoint,
    exported: Path,
    layout: HeadLayout,
    merged: Merged,
    around: Mapping[str, Tensor] = NOTHING,
    compared: Mapping[str, Stored] = NOTHING,
) -> SelfTest:
    """merged(layer): the weights that were to be written, heads in the layout's order. around: tensors outside the
    layers that changed, by their names in the original. compared: copies that were compared when they were written.

    Whole models are compared where two of them fit in 4 GB; else layer by layer, attention computed and everything else
    compared (models that go out as Phi: one layer after the other, each with the model's embedding and head). Raises
    GrouperError if the exported model does not compute what the merged weights say.
    """
    a = Architecture.of(original.config)
    folded = a.as_phi
    if a.encodes:  # always whole: none of them is large
        with gathered_reference(original, layout, merged, around) as reference:
            result = _compare_encoders(exported, reference, a)
    elif (3 if folded else 2) * 8 * original.parameters < min(MEMORY, free_memory()):
        with gathered_reference(original, layout, merged, around) as reference:
            result = _compare(exported, reference, as_phi(original, layout, merged))
    elif folded:
        result = _layer_by_layer(original, exported, layout, merged)
    else:
        result = run_part_test(original, exported, layout, merged, around, compared)
    if not result.passed:
        raise GrouperError(
            f"the exported model failed its self-test: {result.summary} (at most {TOLERANCE:g} expected); "
            "nothing was written"
        )
    return result


def _layer_by_layer(original: Checkpoint, exported: Path, layout: HeadLayout, merged: Merged) -> SelfTest:
    """The worst of all layers, each as a model of its own."""
    results = []
    before = Architecture.of(original.config)
    after = replace(before, family=FAMILIES["phi"]) if before.as_phi else before
    for layer, layer_layout in enumerate(layout.layers):
        with tempfile.TemporaryDirectory(dir=exported.parent, prefix=".self-test-") as temporary:
            ours = cut(Checkpoint.open(exported), after, layer, Path(temporary) / "ours")
            theirs = cut(original, before, layer, Path(temporary) / "theirs")
            one = replace(layout, layers=(layer_layout,))
            of_layer = lambda _, layer=layer: merged(layer)  # noqa: E731
            with gathered_reference(theirs, one, of_layer) as reference:
                results.append(_compare(ours.folder, reference, as_phi(theirs, one, of_layer)))
    return SelfTest(max(r.largest_difference for r in results), min(r.same_tokens for r in results), GENERATED)


def as_phi(original: Checkpoint, layout: HeadLayout, merged: Merged) -> dict[str, Tensor]:
    """For a model that goes out as Phi, its tensors before rounding; for others, none."""
    a = Architecture.of(original.config)
    arranged = lambda done, layer: grouped_order(done.attention, layout.layers[layer])  # noqa: E731
    return dict(phi_tensors(original, a, merged, arranged, rounded=False)) if a.as_phi else {}


def _compare(exported: Path, reference, unrounded: dict[str, Tensor]) -> SelfTest:
    """unrounded: folded tensors before rounding. The files must hold them rounded; logits are compared with them
    unrounded."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    config = json.loads((exported / "config.json").read_text())
    auto = AutoModelForImageTextToText if decoder_config(config) is not config else AutoModelForCausalLM
    own_code = (exported / ragged.FILE).is_file()  # our own modelling file, written a moment ago
    ours = auto.from_pretrained(exported, dtype=torch.float64, trust_remote_code=own_code, **in_double(config)).eval()
    written = Checkpoint.open(exported)
    for name, tensor in unrounded.items():
        if not torch.equal(written.tensor(name), tensor.to(written.tensors[name].torch_dtype)):
            raise GrouperError(
                f"the exported model failed its self-test: {name} is not what was folded; nothing was written"
            )
        ours.get_parameter(name).data = tensor.double()
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, reference.get_input_embeddings().num_embeddings, (2, PROMPT), generator=generator)
    options = {"max_new_tokens": GENERATED, "min_new_tokens": GENERATED, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        difference = (ours(prompt).logits - reference(prompt).logits).abs().max().item()
        tokens = [
            m.generate(prompt[:1], attention_mask=torch.ones_like(prompt[:1]), **options)[0, PROMPT:]
            for m in (ours, reference)
        ]
    return SelfTest(difference, int((tokens[0] == tokens[1]).sum()), GENERATED)


def _compare_encoders(exported: Path, reference, architecture: Architecture) -> SelfTest:
    """Logits, or what stands behind the last layer; of a model with a decoder greedy tokens, too."""
    import transformers

    config = json.loads((exported / "config.json").read_text())
    auto = next(name for name, loaded in config["auto_map"].items() if loaded.endswith(config["architectures"][0]))
    ours = getattr(transformers, auto).from_pretrained(exported, dtype=reference.dtype, trust_remote_code=True).eval()
    inputs, writes = random_inputs(reference, architecture, PROMPT), bool(architecture.family.parts)
    options = {"max_new_tokens": GENERATED, "min_new_tokens": GENERATED, "do_sample": False, "num_beams": 1}
    tokens = []
    with torch.inference_mode():
        got, wanted = (answer(model(**inputs)) for model in (ours, reference))
        for model in (ours, reference) if writes and ours.can_generate() else ():
            prompt = {name: given[:1] for name, given in inputs.items()}
            tokens.append(transformers.GenerationMixin.generate(model, **prompt, **options)[0, -GENERATED:])
    difference = (got - wanted).abs().max().item()
    if not tokens:
        return SelfTest(difference, 0, 0, f"answers differ by {difference:.1g}")
    return SelfTest(difference, int((tokens[0] == tokens[1]).sum()), GENERATED)


@contextmanager
def gathered_reference(
    original: Checkpoint, layout: HeadLayout, merged: Merged, around: Mapping[str, Tensor] = NOTHING
) -> Iterator[nn.Module]:
    """The original model with the merged weights as stored: each query head gets its own copy of the K and V head that
    it reads."""
    fits = 2 * 8 * original.parameters < max(MEMORY, free_memory() / 2)
    model = InMemoryModel(original, dtype=torch.float64 if fits else torch.float32)
    if around:
        model.replace_around({name: changed(original, around, name) for name in around})
    a = model.architecture

    def as_stored(layer: int) -> MergedLayer:
        dtype = torch.float64 if a.as_phi else a.stored_dtype(original, layer)  # what is folded is compared unrounded
        done, prefix = merged(layer), a.prefix(original, layer)
        stored = {n: torch.float64 if a.as_phi else original.tensors[prefix + n].torch_dtype for n in done.others}
        return MergedLayer(done.attention.to(dtype), {n: t.to(stored[n]) for n, t in done.others.items()})

    with model.installed(layout, as_stored) as reference:
        yield reference
