"""A training on disk."""

import json

import pytest
import torch

from grouper import GrouperError
from grouper.uptraining.saved import Reached, SavedTraining


def test_the_log_keeps_the_step_that_training_goes_on_from(tmp_path):
    saved = SavedTraining(tmp_path / "out.uptrain" / "key")
    for step in (0, 2, 4, 5, 6):
        saved.note(step=step, loss=step / 2)
    with open(saved.log, "a") as file:
        file.write('{"step": 4, "lo')  # cut off by the kill
    saved.forget_after(4)
    lines = [json.loads(line) for line in saved.log.read_text().splitlines()]
    assert lines == [{"step": 0, "loss": 0.0}, {"step": 2, "loss": 1.0}, {"step": 4, "loss": 2.0}]
    saved.forget_after(-1)
    assert saved.log.read_text() == ""


def test_what_is_saved_is_read_to_the_bit(tmp_path):
    saved = SavedTraining(tmp_path / "out.uptrain" / "key")
    assert saved.reached() is None
    reached = Reached(6, "a layout", 4, 0.25, 2, 3, 12.5)
    turned = torch.randn(3, 2).T
    saved.save(saved.state, {"weight.a": turned}, reached)
    tensors, again = saved.load(saved.state)
    assert torch.equal(tensors["weight.a"], turned) and again == reached == saved.reached()
    assert Reached() == Reached(0, "", 0, float("inf"), 0, 0, 0.0), "everything is better than nothing"
    assert saved.logs == tmp_path / "out.logs" and saved.best.parent == saved.state.parent == saved.folder


@pytest.mark.parametrize(
    "line", ["x", "", "[]", "{}", '{"step": "4"}', '{"step": 4.5}', '{"step": 1, "step": 2}', "[" * 2000, "\x00"]
)
def test_a_damaged_log_is_one_line(tmp_path, line):
    saved = SavedTraining(tmp_path / "out.uptrain" / "key")
    saved.note(step=1)
    with open(saved.log, "a") as file:
        file.write(f'{line}\n{{"step": 2}}\n')
    with pytest.raises(GrouperError, match=r"log.jsonl is damaged \(.*\): delete the folder it is in") as refused:
        saved.forget_after(2)
    assert "\n" not in str(refused.value) and saved.log.read_text().startswith('{"step": 1}')


def test_a_log_that_was_edited_is_refused(tmp_path):
    """Lines that were noted after the training was saved are dropped before."""
    saved = SavedTraining(tmp_path / "out.uptrain" / "key")
    saved.note(step=1, loss=2.5)
    digest = saved.digest_of_log()
    saved.note(step=2, loss=2.25)
    saved.forget_after(1, digest)
    assert saved.log.read_text() == '{"step": 1, "loss": 2.5}\n'
    saved.log.write_text('{"step": 1, "loss": 2.4}\n')
    with pytest.raises(GrouperError, match="it changed since it was written"):
        saved.forget_after(1, digest)
    saved.forget_after(1)


def test_a_state_whose_best_score_is_no_number_is_refused(tmp_path):
    saved = SavedTraining(tmp_path / "out.uptrain" / "key")
    saved.save(saved.state, {}, Reached(best=1.0))
    text = saved.state.read_bytes()
    saved.state.write_bytes(text.replace(b'\\"best\\": 1.0', b'\\"best\\": NaN'))
    assert text != saved.state.read_bytes()
    with pytest.raises(GrouperError, match=r"state.safetensors is damaged \(its best score is no number\)"):
        saved.reached()


def test_the_best_weights_are_not_the_state(tmp_path):
    saved = SavedTraining(tmp_path / "out.uptrain" / "key")
    for path in (saved.best, saved.state):
        saved.save(path, {"a": torch.ones(2)}, Reached(3))
    saved.best.replace(saved.state)
    with pytest.raises(GrouperError, match=r"it was written as 'key/best\.safetensors'"):
        saved.reached()
