"""Self-test of models that memory holds twice: the exported folder, loaded as a user loads it, against a reference.

Logits or answers, greedy tokens and the addition of every layer are compared in float64. In float32, a merged real
model can amplify rounding beyond the tolerance.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from grouper.attention import Merged
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.export.format import TOLERANCE, Job, SelfTest, SelfTestFailed
from grouper.export.hf import ragged
from grouper.export.hf.as_phi import phi_tensors
from grouper.export.hf.stock import grouped_order
from grouper.export.layer_adds import LayerAdds, worst_difference
from grouper.export.reference import gathered_reference
from grouper.families.architecture import Architecture
from grouper.families.decoders import FAMILIES
from grouper.model.auto import auto_class
from grouper.model.dummy_inputs import answer, random_inputs
from grouper.model.loadable import auto_of_export
from grouper.model.loading import load
from grouper.model.one_layer import cut
from grouper.outputs import temporary_folder
from grouper.running.in_memory import in_double

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT, GENERATED = 48, 16  # tokens


def run_whole_test(job: Job, exported: Path) -> SelfTest:
    """Compare the exported folder with the reference. Raises SelfTestFailed if folded tensors are not the expected
    ones."""
    with gathered_reference(job) as reference:
        ours = load_exported(exported, reference.dtype)
        if job.architecture.as_phi:
            _put_unrounded(ours, exported, job)
        if job.architecture.encodes:
            return _compare_answers(job, ours, reference)
        return _compare_logits(job, ours, reference)


def layers_as_models(job: Job, exported: Path) -> SelfTest:
    """Worst result of all layers, each tested as a one-layer model with the embedding and the head. Used for models
    that are folded into another class and do not fit into memory."""
    results, before = [], job.architecture
    after = written_as(before)
    for layer, layer_layout in enumerate(job.layout.layers):
        with temporary_folder(exported.parent, exported.name.lstrip(".")) as temporary:
            ours = cut(Checkpoint.open(exported), after, layer, temporary / "ours")
            theirs = cut(job.checkpoint, before, layer, temporary / "theirs")
            layout = replace(job.layout, layers=(layer_layout,))
            one = Job(theirs, layout, _alone(job, layer), job.options)
            found = run_whole_test(one, ours.folder)
            results.append(replace(found, where=found.where.replace("layer 0", f"layer {layer}")))
    worst = max(results, key=lambda r: r.largest_difference)
    told = (
        f"every layer of the folder, as a model of its own, gives what the merged layer gives (largest difference "
        f"{worst.largest_difference:.1g})"
    )
    return replace(worst, same_tokens=min(r.same_tokens for r in results), told=told)


def _alone(job: Job, layer: int) -> Merged:
    """Weights of this layer for a model that has no other layer."""
    return lambda _: job.merged(layer)


def written_as(a: Architecture) -> Architecture:
    """Architecture with the module names of the exported class."""
    return replace(a, family=FAMILIES["phi"]) if a.as_phi else a


def load_exported(exported: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """Model of a folder that was just written or checked, so that its modelling file may run."""
    config = Checkpoint.open(exported).config
    own_code = (exported / ragged.FILE).is_file()  # our own modelling file, just written or checked
    auto = auto_of_export(config) if own_code else auto_class(config)
    options = in_double(config) if dtype == torch.float64 else {}
    return load(auto, exported, own_code, dtype=dtype, **options).eval()


def _put_unrounded(ours: nn.Module, exported: Path, job: Job) -> None:
    """For a model folded into another class: check that `exported` holds the folded tensors rounded to its dtype, then
    put the unrounded ones into `ours`, because the reference is not rounded either."""
    arranged = lambda done, layer: grouped_order(done.attention, job.layout.layers[layer])  # noqa: E731
    written = Checkpoint.open(exported)
    for name, tensor in phi_tensors(job.checkpoint, job.architecture, job.merged, arranged, rounded=False):
        if not torch.equal(written.tensor(name), tensor.to(written.tensors[name].torch_dtype)):
            raise SelfTestFailed(f"the exported model failed its self-test: {name} is not what was folded")
        ours.get_parameter(name).data = tensor.double()


def _compare_logits(job: Job, ours: "PreTrainedModel", reference: "PreTrainedModel") -> SelfTest:
    generator = torch.Generator().manual_seed(0)
    known = reference.get_input_embeddings().get_parameter("weight").shape[0]
    prompt = torch.randint(0, known, (2, PROMPT), generator=generator)
    options = {"max_new_tokens": GENERATED, "min_new_tokens": GENERATED, "do_sample": False, "pad_token_id": 0}
    found = _compared(job, ours, reference, {"input_ids": prompt})
    with torch.inference_mode():
        tokens = [
            generates(prompt[:1], attention_mask=torch.ones_like(prompt[:1]), **options)[0, PROMPT:]
            for generates in (getattr(m, "generate") for m in (ours, reference))  # noqa: B009
        ]
    return _with_tokens(found, tokens, "logits")


def _compare_answers(job: Job, ours: "PreTrainedModel", reference: "PreTrainedModel") -> SelfTest:
    """Compare, for models with an encoder, logits, or the last layer's output without a head; with a decoder behind
    it, also greedy tokens."""
    import transformers

    inputs, writes = random_inputs(reference, job.architecture, PROMPT), bool(job.architecture.family.parts)
    options = {"max_new_tokens": GENERATED, "min_new_tokens": GENERATED, "do_sample": False, "num_beams": 1}
    found, tokens = _compared(job, ours, reference, inputs), []
    with torch.inference_mode():
        for model in (ours, reference) if writes and ours.can_generate() else ():
            prompt = {name: given[:1] for name, given in inputs.items()}
            tokens.append(transformers.GenerationMixin.generate(model, **prompt, **options)[0, -GENERATED:])
    return _with_tokens(found, tokens, "answers")


@torch.inference_mode()
def _compared(job: Job, ours: nn.Module, reference: nn.Module, inputs: dict[str, Tensor]) -> SelfTest:
    """Larger of two differences after one pass through both models: that of an answer, and that of a layer's
    addition."""
    adds = LayerAdds(ours, written_as(job.architecture)), LayerAdds(reference, job.architecture)
    answers = []
    for model, recorder in zip((ours, reference), adds):
        with recorder.recording(range(len(job.layout.layers))):
            answers.append(answer(model(**inputs)))
    of_layer, where = worst_difference(*adds)
    of_answer = (answers[0] - answers[1]).abs().max().item()
    if of_layer >= TOLERANCE or of_answer <= of_layer:
        return SelfTest(of_layer, 0, 0, where=where)
    return SelfTest(of_answer, 0, 0)  # also for NaN


def _with_tokens(found: SelfTest, tokens: list[Tensor], answers: str) -> SelfTest:
    told = f"the folder gives the merged model's {answers} (largest difference {found.largest_difference:.1g})"
    if not tokens:
        return replace(found, told=told)
    same = int((tokens[0] == tokens[1]).sum())
    return replace(found, same_tokens=same, tokens=GENERATED, told=f"{told} and tokens")
