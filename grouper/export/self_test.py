"""Last step of an export: load the result as a user would, and compare it with an independent reference.

The self-test shows the same for models of any size: transformers finds every tensor, every tensor in the files is the
expected one, and every layer (attention, MLP, norms, whatever refinement trained) computes the same as the merged
layer. Whole models are compared if memory holds two of them; others are compared layer by layer.
"""

from dataclasses import replace
from pathlib import Path

from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.export.format import TOLERANCE, Job, SelfTest, SelfTestFailed
from grouper.export.hf.export_class import ExportClass
from grouper.export.hf.tensors import attentions_within
from grouper.export.part_test import run_part_test
from grouper.export.whole_test import layers_as_models, run_whole_test
from grouper.export.written import check_layer, check_outside
from grouper.model.loadable import check_exported
from grouper.model.memory import free_memory


def run_self_test(job: Job, exported: Path, export_class: ExportClass) -> SelfTest:
    """Test an exported folder. exported: folder written from the job. Raises SelfTestFailed if its tensors or its
    outputs differ from the job's.

    Two whole models in float64 (three of one that is folded into Phi) are compared where they fit
    `job.options.self_test_memory`, and encoders always; else layer by layer.
    """
    a = job.architecture
    try:
        found = check_exported(exported, job.checkpoint)
    except GrouperError as error:
        raise SelfTestFailed(f"the exported model failed its self-test: {error}") from error
    models = 3 if a.as_phi else 2
    if a.encodes or models * 8 * job.checkpoint.parameters < min(job.options.self_test_memory, free_memory()):
        if not a.as_phi:  # Phi's tensors are checked when they are loaded
            check_written(job, exported, export_class)
        result = run_whole_test(job, exported)
    elif a.as_phi:
        result = layers_as_models(job, exported)
    else:
        result = run_part_test(job, exported, export_class)
    if not result.passed:
        raise SelfTestFailed(
            f"the exported model failed its self-test: {_wrong(result)} (at most {TOLERANCE:g} expected)"
        )
    return replace(result, told=f"{result.summary}, transformers finds all {found} tensors")


def check_written(job: Job, exported: Path, export_class: ExportClass) -> None:
    """Check that every tensor of the folder is the expected one. Raises SelfTestFailed."""
    written = Checkpoint.open(exported)
    check_outside(job, written)
    for prefix in attentions_within(job):
        check_layer(job, written, export_class, prefix)


def _wrong(result: SelfTest) -> str:
    if result.where:
        return f"{result.where} differs by {result.largest_difference:.2g} of what it adds"
    agree = f", {result.same_tokens} of {result.tokens} greedy tokens agree" if result.tokens else ""
    return f"logits differ by {result.largest_difference:.2g}{agree}"
