"""What a training is refused for, called and said to be, without one."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_training import LAYOUT, ToyStudent, toy_teacher

from grouper import GrouperError
from grouper.ranks import ALONE, Ranks
from grouper.running.batch import Batch
from grouper.uptraining import uptrain
from grouper.uptraining.division import Division
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.options import Losses, UptrainPlan
from grouper.uptraining.saved import Reached
from grouper.uptraining.text import TrainingText
from grouper.uptraining.uptrain import _key, _teacher, announced, check_text, facts_of
from grouper.uptraining.validation import Score

OPTIONS = UptrainPlan(tokens=96, step_tokens=24, window=6, lr=1e-4, losses=Losses(), held_out=0.25)
TEXT = TrainingText(Batch.of(torch.arange(60).view(10, 6)), torch.arange(60).view(10, 6) % 2 == 0)


def model(facts: dict | None = None, name: str = "in") -> ExportedModel:
    """An export, as far as its facts go."""
    checkpoint = SimpleNamespace(fingerprint=name, name=name, title=name)
    return ExportedModel(checkpoint, checkpoint, checkpoint, LAYOUT, facts or {})


@pytest.mark.parametrize(
    ("change", "ranks", "said"),
    [({"tokens": 24 * 64}, ALONE, None), ({"tokens": 60 * 65}, ALONE, "65 passes over the 60 of text.txt"),
     ({"tokens": 60 * 64}, ALONE, None), ({"tokens": 47}, ALONE, "47 tokens are 1 step of 24"), ({}, Ranks(0, 2), None),
     ({}, Ranks(0, 3), "`step_tokens=24` are 4 windows of 6, which 3 processes cannot share")],
)  # fmt: skip
def test_text_that_does_not_go_far_enough(change, ranks, said):
    options = replace(OPTIONS, **change)
    if said is None:
        check_text(TEXT, options, "text.txt", ranks)
        return
    with pytest.raises(GrouperError, match=said):
        check_text(TEXT, options, "text.txt", ranks)


def test_answers_that_stand_first_in_a_window_alone_are_none():
    first = torch.zeros(10, 6, dtype=torch.bool)
    first[:, 0] = True
    with pytest.raises(GrouperError, match="has no answers to learn"):
        check_text(TrainingText(TEXT.batch, first), OPTIONS, "chats", ALONE)


def test_another_training_has_another_name():
    teacher, parts = SimpleNamespace(fingerprint="t"), TEXT.split(2)
    other = TrainingText(parts[0].batch, ~parts[0].counted)
    key = lambda of, by, learnt, judged, options: _key(of, by, Division(learnt, judged, options))  # noqa: E731
    found = {
        key(model(), teacher, *parts, OPTIONS), key(model(name="x"), teacher, *parts, OPTIONS),
        key(model(), None, *parts, OPTIONS), key(model(), SimpleNamespace(fingerprint="u"), *parts, OPTIONS),
        key(model(), teacher, *parts[::-1], OPTIONS), key(model(), teacher, other, parts[1], OPTIONS),
        *(key(model(), teacher, *parts, replace(OPTIONS, **change)) for change in ({"lr": 0.1}, {"seed": 1})),
    }  # fmt: skip
    assert len(found) == 8 and key(model(), teacher, *parts, OPTIONS) in found


def trained(teacher: bool = True) -> SimpleNamespace:
    """A training of which three of four steps were taken."""
    return SimpleNamespace(
        plan=OPTIONS, text=TEXT, student=ToyStudent(), teacher=toy_teacher() if teacher else None,
        reached=Reached(step=3, best_step=2), seconds_left=lambda: 12.4, keep_last=False,
    )  # fmt: skip


def test_what_is_announced():
    """7 x 4 + 2 x (4 x 4 + 4) + 4 x 7 numbers: weights, and gradients with two moments; the teacher's weights."""
    training = trained()
    training.student.model.embedding.requires_grad_(False)
    training.student.trained = lambda: ((n, p) for n, p in training.student.model.named_parameters() if p.requires_grad)
    training.student.model.filling = torch.nn.Parameter(torch.zeros(1).expand(10**8), requires_grad=False)
    said = announced(training)
    assert said == (
        "training 68 of 100,000,096 parameters on 96 tokens (1.6 passes over 60), 4 steps: about 12 s, 0.4 GB and "
        "activations"
    )
    training.teacher.model.model.filling = torch.nn.Parameter(torch.zeros(1).expand(5 * 10**7), requires_grad=False)
    assert "0.6 GB" in announced(training)
    training.student.model.filling.requires_grad_(True)
    assert "2.2 GB" in announced(training), "20 bytes for each number that is trained, the best ones among them"
    training.plan = replace(training.plan, lr=None)
    assert ", 4 steps after short trainings that find the rate: about " in announced(training)
    training.keep_last = True
    assert announced(training).endswith("; refinement has seen nearly all of this text, which flatters the start: "
                                        "trained to the end")  # fmt: skip


def test_facts_of_a_training():
    facts = {
        "merge": "mean",
        "base_model": "x",
        "layout": 1,
        "report": 2,
        "deploy": 3,
        "measured": 4,
        "crc32": {"a": 5},
    }
    score = Score(nll=2.5, kl=0.25, agreement=0.9, teacher_nll=2.25)
    found = facts_of(model(facts), trained(), score, SimpleNamespace(title="teacher"), "grouper uptrain")
    assert found == {
        "merge": "mean", "base_model": "x", "base_fingerprint": "in", "uptrain": "grouper uptrain",
        "uptrained": {
            "method": "distill", "teacher": "teacher", "tokens": 3 * 24, "steps": 3, "best_step": 2,
            "losses": {"kl": 1.0, "hidden": 1.0, "causal": 0.0}, "learning_rate": 1e-4, "train": "full",
            "held_out": {"nll": 2.5, "kl": 0.25, "agreement": 0.9, "teacher_nll": 2.25},
        },
        "measured": {
            "nats per token, held-out training text": [2.25, 2.5], "KL to the original": [0.0, 0.25],
            "agreement with the original": [1.0, 0.9],
        },
    }  # fmt: skip
    probed = trained()
    probed.reached.tried = {"3e-05": 0.5, "9e-05": float("inf")}
    tried = facts_of(model(facts), probed, score, None, None)["uptrained"]["rates_tried"]
    assert tried == {"3e-05": 0.5, "9e-05": None}
    bare = facts_of(model(facts), trained(False), Score(nll=2.5), None, None)
    assert bare["measured"] == {"nats per token, held-out training text": [None, 2.5]}
    assert bare["uptrained"]["held_out"] == {"nll": 2.5, "kl": None, "agreement": None, "teacher_nll": None}
    assert json.loads(json.dumps(bare)) == bare


@pytest.mark.parametrize(
    ("memory", "losses", "wanted"), [(None, Losses(), (400, True)), (70, Losses(1, 0, 0), (70, False))]
)
def test_a_teacher_takes_half_of_what_is_free_unless_told(monkeypatch, memory, losses, wanted):
    """And keeps hidden states where these are learnt."""
    monkeypatch.setattr(uptrain, "free_memory", lambda: 800.0)
    monkeypatch.setattr(uptrain, "open_teacher", lambda *given: given)
    found = _teacher("checkpoint", "cpu", None, memory, replace(OPTIONS, losses=losses))
    assert found == ("checkpoint", "cpu", torch.float32, *wanted, 24)
    assert _teacher("checkpoint", "cpu", "bfloat16", memory, OPTIONS)[2] == torch.bfloat16


def test_a_teacher_on_a_gpu_takes_a_third_of_what_is_free_there(monkeypatch):
    monkeypatch.setattr(uptrain, "free_memory", lambda: 800.0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (900, 1000))
    monkeypatch.setattr(uptrain, "open_teacher", lambda *given: given)
    assert _teacher("checkpoint", "cuda", None, None, OPTIONS)[1:4] == ("cuda", torch.bfloat16, 300)
    assert _teacher("checkpoint", "cuda", None, 70, OPTIONS)[3] == 70


def test_the_original_is_looked_for_here_and_beside_the_export(tmp_path, monkeypatch):
    from grouper.uptraining import exported

    opened = []
    monkeypatch.setattr(exported.Checkpoint, "open", lambda name: opened.append(str(name)) or str(name))
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "config.json").touch()

    def original(named: object, given: str | None = None, otherwise: str | None = None) -> str:
        return exported._original(tmp_path / "in", {"base_model": named}, given, otherwise)

    assert original("beside") == str(tmp_path / "beside") and original("beside", given="mine") == "mine"
    assert original("demo") == "demo" and original("owner/name") == "owner/name"
    assert (
        original("nowhere", otherwise="teacher") == "teacher" and original("beside", otherwise="teacher") != "teacher"
    )
    monkeypatch.chdir(tmp_path)
    assert original("beside") == "beside", "here before beside it"
    for named, said in (("nowhere", "neither here nor beside it"), ("a/../beside", "neither"), (None, "does not name")):
        with pytest.raises(GrouperError, match=said):
            original(named)
    assert Path.cwd() == tmp_path
