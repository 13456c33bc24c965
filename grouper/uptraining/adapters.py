"""LoRA by peft: low-rank adapters on every linear module are trained instead of the weights, and folded in at the
end."""

from typing import TYPE_CHECKING

from torch import nn

from grouper.errors import GrouperError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_adapters(model: "PreTrainedModel", rank: int, seed: int) -> None:
    """Add adapters to all linear modules that hold weights, except the head. Raises GrouperError if peft is not
    installed."""
    import torch

    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise GrouperError("`train=lora` needs the peft package: pip install 'kv-grouper[lora]'") from error
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and "weight" in module._parameters
    ]
    torch.manual_seed(seed)  # peft initialises one factor of each adapter randomly
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear), model)


def fold_adapters(model: nn.Module) -> None:
    """Fold adapters into the weights, and remove them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, module.get_base_layer())
