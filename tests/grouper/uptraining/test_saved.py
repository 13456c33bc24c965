"""A training on disk."""

import json

import torch

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
