"""Models with an encoder trained from a folder to a folder, each on what it reads."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from commands import grouper
from encoder_samples import SAMPLES, answers, architecture_of, examples, files_for, load, make, with_reader
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity, kl_div
from uptrained_files import files_of

from grouper import Checkpoint, GrouperError, HeadLayout, UptrainOptions, export, uptrain_model
from grouper.calibration.source import TextSource
from grouper.machine import Machine
from grouper.uptraining.division import divisions
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.methods import METHODS
from grouper.uptraining.options import Losses
from grouper.uptraining.student import Student
from search.evaluation.models import evaluate_model

KINDS = {"bert": "text", "bert-bare": "text", "vit": "pictures", "t5": "pairs"}
QUICK = UptrainOptions(
    tokens=4608, step_tokens=192, micro_tokens=96, window=24, validate=4, lr=3e-3, held_out=0.2, patience=0
)


def export_of(model, folder):
    """With half of the KV heads, by the mean of neighbours; of class ragged."""
    a = architecture_of(model)
    export(model, HeadLayout.from_labels([[0, 0, 1, 1, 2, 2, 3, 3]] * a.layers, 8, a.head_dim), folder, merge="mean")
    return folder


@pytest.fixture(scope="module")
def exported(encoders, tmp_path_factory):
    """exported("t5"): its folder, that of its original, what it is trained on and what it is measured on."""
    made = {}

    def get(name: str) -> SimpleNamespace:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = with_reader(encoders(name), folder / "model")
            given, other = (files_for(KINDS[name], folder / part, seed) for seed, part in enumerate("ab"))
            made[name] = SimpleNamespace(
                folder=export_of(model, folder / "in"), model=model, given=given, source=TextSource(**given),
                other=TextSource(**other),
            )  # fmt: skip
        return made[name]

    return get


def further(values: dict[str, float]) -> float:
    """How far from its original."""
    return 1 - values["cosine"] if "cosine" in values else values["kl"]


@pytest.fixture(scope="module")
def trained(exported, tmp_path_factory):
    """trained("t5"): the folder that came out, what was told, how it was done."""
    made = {}

    def get(name: str) -> SimpleNamespace:
        if name not in made:
            has, out, told = exported(name), tmp_path_factory.mktemp(name) / "out", []
            done = uptrain_model(
                has.folder, out, has.source, QUICK, command="grouper uptrain", machine=Machine(tell=told.append)
            )
            made[name] = SimpleNamespace(folder=out, told=told, done=done)
        return made[name]

    return get


def facts_of(folder) -> dict:
    return json.loads((folder / "grouper.json").read_text())


@pytest.mark.parametrize("name", KINDS)
def test_a_trained_encoder_is_nearer_to_its_original_and_of_the_same_class(exported, trained, name):
    has, out = exported(name), trained(name)
    assert out.done.export_class == "ragged" and out.done.self_test.passed
    assert torch.isfinite(answers(out.folder)).all() and not list(out.folder.parent.glob("*.uptrain"))
    old, facts = facts_of(has.folder), facts_of(out.folder)
    assert facts["layout"] == old["layout"] and facts["report"]["deploy"] == old["report"]["deploy"]
    lines = [json.loads(line) for line in (out.folder / "uptraining.jsonl").read_text().splitlines()]
    judged = [line["held_out"] for line in lines if "held_out" in line]
    assert len(judged) == 5 and further(min(judged, key=further)) < 0.6 * further(judged[0])
    before, after = (
        evaluate_model(f, has.other, base=str(has.model), window=24).values for f in (has.folder, out.folder)
    )
    assert further(after) < 0.6 * further(before), "on others, too"


@pytest.mark.parametrize("name", KINDS)
def test_what_is_said_of_a_trained_encoder(trained, name):
    """Of one without a head the cosine of its vectors, which then stands for all."""
    out = trained(name)
    facts, bare = facts_of(out.folder), name == "bert-bare"
    found = facts["uptrained"]["held_out"]
    known = {kind: value for kind, value in found.items() if value is not None}
    assert known.keys() == ({"cosine"} if bare else {"nll", "kl", "agreement", "teacher_nll"})
    if bare:
        measured = {"cosine with the original's vectors": [1.0, found["cosine"]]}
        assert out.told[1] == f"cosine with the original's vectors {found['cosine']:.4f}"
    else:
        measured = {
            "nats per token, held-out training text": [found["teacher_nll"], found["nll"]],
            "KL to the original": [0.0, found["kl"]], "agreement with the original": [1.0, found["agreement"]],
        }  # fmt: skip
        assert f"KL {found['kl']:.4f}" in out.told[1] and "cosine" not in out.told[1]
    assert facts["measured"] == measured
    assert all(what in (out.folder / "README.md").read_text() for what in measured)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_is_what_was_judged(exported, trained, name):
    """The held-out examples' answers, by transformers alone."""
    has, out = exported(name), trained(name).folder
    judged = next(divisions(ExportedModel.open(has.folder), has.source, QUICK, "cpu")).judged
    given = {**judged.batch.inputs, **({"labels": judged.batch.labels} if name == "t5" else {})}
    with torch.inference_mode():
        ours, theirs = (load(folder, dtype=torch.float32)(**given) for folder in (out, has.model))
    if name == "bert-bare":
        kind, value = "cosine", cosine_similarity(ours[0].mean(1), theirs[0].mean(1), dim=-1).mean()
    else:
        q, p = (output.logits.view(*judged.counted.shape, -1).log_softmax(-1) for output in (ours, theirs))
        kind, value = "kl", kl_div(q, p, reduction="none", log_target=True).sum(-1)[judged.counted].mean()
    assert facts_of(out)["uptrained"]["held_out"][kind] == pytest.approx(value.item(), rel=1e-3)


@pytest.mark.parametrize("name", ["bert", "vit", "t5"])
def test_a_killed_training_goes_on_to_the_same_files(exported, trained, tmp_path, name):
    has, out = exported(name), tmp_path / "out"

    def killed(done: int, _total: int, _note: str) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        uptrain_model(has.folder, out, has.source, QUICK, command="grouper uptrain", machine=Machine(progress=killed))
    assert not out.exists() and list(tmp_path.rglob("state.safetensors"))
    steps = []
    told = lambda done, _total, note: steps.append(done) if "loss" in note else None  # noqa: E731
    uptrain_model(has.folder, out, has.source, QUICK, command="grouper uptrain", machine=Machine(progress=told))
    assert min(steps) == 10, "it went on after the sixth step, where it was judged first"
    assert files_of(trained(name).folder) == files_of(out)


def test_a_teacher_streamed_from_disk_teaches_the_same(exported, tmp_path):
    has, short = exported("t5"), replace(QUICK, tokens=960, validate=1)
    folders = [tmp_path / "held", tmp_path / "streamed"]
    for folder, memory in zip(folders, (None, 4096)):
        uptrain_model(has.folder, folder, has.source, short, machine=Machine(memory=memory))
    held, streamed, before = (load_file(f / "model.safetensors") for f in (*folders, has.folder))
    for name, tensor in held.items():
        assert (tensor - streamed[name]).norm() < 0.02 * (tensor - before[name]).norm() + 1e-6, name


def test_pictures_from_the_command_line(exported, tmp_path):
    has = exported("vit")
    options = ["--tokens", "1024", "--step-tokens", "136", "--lr", "0.003", "--images", has.given["images"]]
    done = grouper("uptrain", has.folder, "-o", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert f"next: grouper evaluate {tmp_path / 'out'} --images others" in done.stderr + done.stdout
    facts = json.loads((tmp_path / "out" / "grouper.json").read_text())
    assert "--images" in facts["uptrain"] and facts["uptrained"]["steps"] == 7


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [("vit", "bert", "takes pictures: give `images=FOLDER`"), ("bert", "vit", "takes text: give `text=FILE`"),
     ("t5", "bert", "is no pair")],
)  # fmt: skip
def test_sources_that_do_not_suit(exported, tmp_path, name, other, words):
    with pytest.raises(GrouperError, match=words):
        uptrain_model(exported(name).folder, tmp_path / "out", exported(other).source, QUICK)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("losses", [Losses(1, 0, 0), Losses(0, 0, 1)], ids=["kl", "causal"])
def test_a_model_without_a_head_is_refused_what_it_has_no_answers_for(exported, tmp_path, losses):
    has = exported("bert-bare")
    with pytest.raises(GrouperError, match="without a head learns hidden states alone"):
        uptrain_model(has.folder, tmp_path / "out", has.source, replace(QUICK, losses=losses))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["bart", "t5", "whisper"])
def test_recomputed_activations_drop_nothing_out(tmp_path, name):
    """Layers that are told to compute again believe they are trained, and would drop something out by themselves."""
    family, options, saved = SAMPLES[name]
    rate = {"dropout_rate": 0.3} if name == "t5" else {"dropout": 0.3, "activation_dropout": 0.3}
    more = {"attention_dropout": 0.3, "encoder_layerdrop": 0.3, "decoder_layerdrop": 0.3} if name != "t5" else {}
    model = make(tmp_path / "model", family, {**options, **rate, **more}, saved)
    opened = ExportedModel.open(export_of(model, tmp_path / "in"), str(model))
    student = Student(opened, METHODS["distill"], "cpu")
    given = examples(model).called_with("cpu", torch.float32, True)
    once = student.model(**given).logits
    student.checkpoint_activations()
    again = student.model(**given).logits
    assert again.requires_grad and torch.allclose(once, again, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(once, student.model(**given).logits, atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "t5"])
def test_adapters_are_trained_and_folded(exported, tmp_path, name):
    """In what comes out there are none: the self-test compares every tensor with what was to be written."""
    pytest.importorskip("peft", reason="an optional extra")
    has = exported(name)
    done = uptrain_model(has.folder, tmp_path / "out", has.source, replace(QUICK, train="lora", lora_rank=4))
    facts = json.loads((tmp_path / "out" / "grouper.json").read_text())["uptrained"]
    assert done.self_test.passed and facts["train"] == "lora" and facts["best_step"] > 0
    names = Checkpoint.open(tmp_path / "out").tensors
    assert names.keys() == Checkpoint.open(has.folder).tensors.keys() and not any("lora" in n for n in names)
