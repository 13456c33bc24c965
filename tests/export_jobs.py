"""Jobs of exports, as `export_model` makes them, for tests of what an export is made of."""

from pathlib import Path

import torch

from grouper import Architecture, Checkpoint, ExportOptions, HeadLayout
from grouper.attention import MergedLayer
from grouper.compress import Regrouper
from grouper.export.format import Job
from grouper.merging import MERGES

UNTRAINED = ("experts", "block_sparse_moe")  # the class stacks or renames them, and refinement leaves them alone


def job_of(folder: Path, layout: HeadLayout, options: ExportOptions | None = None, merge: str = "mean") -> Job:
    checkpoint = Checkpoint.open(folder)
    merged = Regrouper(checkpoint).merged(layout, MERGES[merge])
    return Job(checkpoint, layout, merged, options or ExportOptions())


def as_if_refined(job: Job, scope: str) -> Job:
    """The job with weights that refinement might have left: in scope "block" the MLP and norms are others, too."""
    a, checkpoint = Architecture.of(job.checkpoint.config), job.checkpoint
    layers: dict[int, MergedLayer] = {}

    def refined(layer: int) -> MergedLayer:
        if layer not in layers:
            done, here = job.merged(layer), a.prefix(checkpoint, layer)
            generator = torch.Generator().manual_seed(layer)
            others = {}
            inside = set().union(*(a.attention_tensors(i) for i in range(a.layers) if a.prefix(checkpoint, i) == here))
            for name in sorted(n.removeprefix(here) for n in checkpoint.tensors if n.startswith(here)):
                if scope == "block" and name not in inside and not any(n in name for n in UNTRAINED):
                    tensor = checkpoint.tensor(here + name).float()
                    others[name] = tensor * (1 + 0.2 * torch.rand(tensor.shape, generator=generator))
            layers[layer] = MergedLayer(done.attention, others)
        return layers[layer]

    return Job(checkpoint, job.layout, refined, job.options)
