"""What a training takes, from shapes alone, and that one which cannot fit is refused."""

from types import SimpleNamespace

import pytest
import torch

from grouper import GrouperError, UptrainOptions
from grouper.uptraining import needs
from grouper.uptraining.needs import check_memory, least_bytes


def folder(*shapes: tuple[int, ...]) -> SimpleNamespace:
    tensors = {str(i): SimpleNamespace(shape=shape) for i, shape in enumerate(shapes)}
    return SimpleNamespace(tensors=tensors, parameters=sum(torch.Size(s).numel() for s in shapes))


SMALL = folder((3, 5), (7,))
SEVEN = folder(*[(4096, 4096)] * 400)  # 6.7 billion


def test_weights_gradients_and_moments():
    assert least_bytes(SMALL, UptrainOptions()) == 22 * (4 + 4 + 8)
    assert least_bytes(SMALL, UptrainOptions(train="lora", lora_rank=2)) == 22 * 4 + 2 * (3 + 5) * (4 + 8)


def free(monkeypatch, gpu: float, main: float = 0.0) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (gpu, 2 * gpu))
    monkeypatch.setattr(needs, "free_memory", lambda: main)


def test_all_weights_of_a_7b_do_not_fit_a_card(monkeypatch):
    """16 bytes of each, and a tenth: 118 GB."""
    free(monkeypatch, 80e9)
    with pytest.raises(GrouperError, match=r"all of 6\.7B parameters takes 118 GB .* cuda:0, which has 80 GB free: "
                                           r"take `train=lora` \(28 GB\), or share it among GPUs"):  # fmt: skip
        check_memory(SEVEN, UptrainOptions(), "cuda:0")
    check_memory(SEVEN, UptrainOptions(train="lora"), "cuda:0")
    check_memory(SEVEN, UptrainOptions(), "cuda:0", shared_by=2)
    free(monkeypatch, 118.2e9)
    check_memory(SEVEN, UptrainOptions(), "cuda:0")


def test_main_memory_counts_on_a_cpu(monkeypatch):
    free(monkeypatch, 0.0, 24e9)
    with pytest.raises(GrouperError, match=r"too much for this machine, which has 24 GB: take `train=lora` \(28 GB\)$"):
        check_memory(SEVEN, UptrainOptions(), "cpu")
    with pytest.raises(GrouperError, match=r"adapters of 6\.7B .* takes 31 GB .*: take a device with more$"):
        check_memory(SEVEN, UptrainOptions(train="lora"), "cpu")
    check_memory(SMALL, UptrainOptions(), "cpu")
