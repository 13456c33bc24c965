"""What stands in the place of accelerate where a model is held in parts, and the adapters of LoRA."""

import pytest
import torch
from toy_training import Toy

from grouper.uptraining.adapters import add_adapters, fold_adapters
from grouper.uptraining.distributed import Sharding
from grouper.uptraining.sharded import whole


def test_a_sharded_training_takes_the_steps_that_were_asked_for(monkeypatch):
    """fully_shard makes other parameters of a model's: the optimizer for them is as the one before."""
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda *_: "mesh")
    sharded = []
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda module, mesh: sharded.append(module))
    model = Toy(0)
    model._no_split_modules = ["Block"]
    model.embedding.requires_grad_(False)
    before = torch.optim.AdamW(model.parameters(), lr=0.02, betas=(0.9, 0.95), weight_decay=0.3)
    same, optimizer = Sharding("cpu").prepare(model, before)
    assert sharded == [*model.blocks, model] and same is model, "what is inside first"
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.02, (0.9, 0.95), 0.3)
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters() if p.requires_grad]


def test_a_rank_that_does_not_save_keeps_no_tensor():
    """Every rank gathers, since a gathering is joint; the first one alone keeps what it has gathered."""
    tensor = torch.arange(3.0)
    assert torch.equal(whole(tensor), tensor) and whole(tensor, kept=False).numel() == 0


def test_gradients_are_exchanged_with_the_last_pass_alone():
    told = []

    class Model:
        def set_requires_gradient_sync(self, value: bool) -> None:
            told.append(value)

    with pytest.raises(KeyboardInterrupt), Sharding("cpu").no_sync(Model()):
        raise KeyboardInterrupt
    assert told == [False, True]


def test_adapters_are_twice_their_product_on_all_but_the_head():
    pytest.importorskip("peft")  # the extra `lora`
    model, again, other = Toy(0), Toy(0), Toy(0)
    for one, seed in ((model, 5), (again, 5), (other, 6)):
        add_adapters(one, 2, seed)
    assert type(model.head) is torch.nn.Linear
    for block, same, drawn, plain in zip(model.blocks, again.blocks, other.blocks, Toy(0).blocks):
        a, b = block.lora_A["default"].weight, block.lora_B["default"].weight
        assert a.shape == (2, 4) and torch.equal(a, same.lora_A["default"].weight)
        assert not torch.equal(a, drawn.lora_A["default"].weight)
        with torch.no_grad():
            b.normal_()
        block.wanted = (plain.weight + 2 * b @ a).detach()
    wanted = [block.wanted for block in model.blocks]
    fold_adapters(model)
    for block, weight in zip(model.blocks, wanted):
        assert type(block).__name__ == "Block" and torch.allclose(block.weight, weight, atol=1e-6)
