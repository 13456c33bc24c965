"""Distribution of a training over processes: by accelerate if each process holds the whole model, by torch's
fully_shard if each holds a part (as `accelerate launch --use_fsdp` requests)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from grouper.errors import GrouperError, as_one_line
from grouper.ranks import own_gpu, started_ranks
from grouper.uptraining.options import UptrainPlan
from grouper.uptraining.saved import SavedTraining

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed.fsdp import FSDPModule
    from transformers import PreTrainedModel


def sharded() -> bool:
    """Whether each process holds only a part of the model."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" and not started_ranks().alone


def accelerator_for(device: str, options: UptrainPlan, saved: SavedTraining) -> "Accelerator | Sharding":
    """Accelerator of accelerate, or Sharding if parameters are sharded: bfloat16 autocast on a GPU, weights in
    float32."""
    if sharded():
        if options.tracker:
            raise GrouperError("`tracker` does not go with FSDP: uptraining.jsonl has what it would get")
        return Sharding(device)
    from accelerate import Accelerator

    if options.tracker is not None and find_spec(options.tracker) is None:
        raise GrouperError(f"`tracker={options.tracker}` is not installed: pip install {options.tracker}")
    with as_one_line("accelerate cannot begin"):
        accelerator = Accelerator(
            cpu="cuda" not in device, mixed_precision="bf16" if "cuda" in device else "no", log_with=options.tracker,
            project_dir=saved.logs if options.tracker else None,
        )  # fmt: skip
        accelerator.init_trackers("grouper")
    return accelerator


class Sharding:
    """Replacement, by torch alone, for the part of accelerate's Accelerator that a training uses. Every decoder layer,
    and the parameters outside the layers, are held in parts and gathered when needed. accelerate supports this on GPUs
    only; this class runs, and is tested, on any device."""

    def __init__(self, device: str):
        self.device = torch.device(own_gpu() if "cuda" in device else "cpu")

    def prepare(self, model: "PreTrainedModel", optimizer: Optimizer) -> tuple["PreTrainedModel", Optimizer]:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (started_ranks().size,))
        names = set(model._no_split_modules or [])
        for module in [m for m in model.modules() if type(m).__name__ in names]:
            fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if self.device.type == "cuda":
            forward = model.forward

            def autocast(*inputs: Any, **named: Any) -> Any:
                with torch.autocast("cuda", torch.bfloat16):
                    return forward(*inputs, **named)

            model.forward = autocast
        group = {k: v for k, v in optimizer.param_groups[0].items() if k in ("lr", "betas", "weight_decay", "fused")}
        return model, AdamW([p for p in model.parameters() if p.requires_grad], **group)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    @contextmanager
    def no_sync(self, model: "FSDPModule") -> Iterator[None]:
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def log(self, values: dict, step: int) -> None:
        """Log nothing, because trackers belong to accelerate."""
