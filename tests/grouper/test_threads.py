import threading
import time

import pytest
import torch

from grouper import Checkpoint
from grouper.calibration.calibration import Calibration
from grouper.calibration.moments import collect_moments
from grouper.calibration.source import TextSource
from grouper.compress import Regrouper
from grouper.evaluation.perplexity import nll
from grouper.threads import in_background, one_thread, side_by_side


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_results_keep_their_order_and_each_is_one_threads(four_threads):
    at_once, most = [], []

    def work(item: int) -> tuple[int, int, bool, bool]:
        at_once.append(item)
        most.append(len(at_once))
        time.sleep(0.02 * (5 - item % 5))  # later ones are done earlier
        at_once.remove(item)
        return item, torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with torch.inference_mode():
        done = list(side_by_side(work, range(12), "cpu"))
    assert done == [(item, 1, False, True) for item in range(12)]
    assert 1 < max(most) <= 4 and torch.get_num_threads() == 4


def test_a_gpu_takes_one_after_the_other():
    names = list(side_by_side(lambda _item: threading.current_thread().name, range(3), "cuda:0"))
    assert set(names) == {threading.current_thread().name}


def test_what_goes_wrong_is_raised_and_threads_are_given_back(four_threads):
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda item: 1 / item, [1, 0, 2], "cpu"))
    with pytest.raises(KeyError), one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 4


def test_moments_and_losses_are_the_same_bits_for_any_number_of_threads(text):
    regrouper = Regrouper(Checkpoint.open("demo"), Calibration(TextSource(str(text)), tokens=12_288, window=128))
    windows, before, found = regrouper.windows(12_288), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            moments = list(collect_moments(regrouper.model, windows))
            found.append((torch.stack([m.second_moment for m in moments]), nll(regrouper.model.model, windows[:12])))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0][0], moments) and found[0][1] == loss for moments, loss in found)


def test_work_in_the_background_is_done_in_turn_and_tells_what_went_wrong():
    done: list[int] = []

    def work(number: int) -> None:
        time.sleep(0.02)
        if number == 3:
            raise OSError("the disk is full")
        done.append(number)

    with in_background() as background:
        background(work, 1)
        background(work, 2)
        assert done == [1]
    assert done == [1, 2]
    with pytest.raises(OSError, match="disk is full"), in_background() as background:
        background(work, 3)
        background(work, 4)
    assert done == [1, 2]
    with pytest.raises(OSError, match="disk is full"), in_background() as background:
        background(work, 3)
