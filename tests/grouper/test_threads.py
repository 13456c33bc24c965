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
from grouper.threads import in_background, made_ahead, one_thread, side_by_side


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


def test_the_next_item_is_made_while_the_caller_is_busy():
    made, threads = [], set()

    def make(item: int) -> int:
        made.append(item)
        threads.add(threading.current_thread().name)
        return 10 * item

    with made_ahead(make, [1, 2, 4]) as get:
        assert get(1) == 10
        deadline = time.monotonic() + 60
        while made != [1, 2] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert made == [1, 2], "nobody asked for 2 yet"
        assert (get(2), get(4)) == (20, 40) and made == [1, 2, 4], "each is made once"
        assert get(3) == 30 and made == [1, 2, 4, 3], "one that was not announced"
    assert len(threads) == 2 and threading.current_thread().name in threads


def test_an_item_that_is_skipped_does_no_harm():
    with made_ahead(lambda item: 10 * item, range(9)) as get:
        assert [get(item) for item in (0, 4, 5, 2)] == [0, 40, 50, 20]


def test_what_goes_wrong_ahead_is_raised_where_its_item_is_asked_for():
    with made_ahead(lambda item: 1 / item, [1, 0, 2]) as get:
        assert get(1) == 1
        with pytest.raises(ZeroDivisionError):
            get(0)
        assert get(2) == 0.5
