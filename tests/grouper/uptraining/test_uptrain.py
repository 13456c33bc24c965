"""Training from a folder to a folder: nearer to the original, resumable to the same bytes, nothing lost."""

import json
import shutil

import pytest
import torch
from commands import grouper
from safetensors.torch import load_file
from tiny_models import add_tokenizer, edit_weights, make_model
from uptrained_files import files_of

from grouper import Checkpoint, ExportOptions, GrouperError, HeadLayout, UptrainOptions, export, uptrain_model
from grouper.calibration.seen import Seen
from grouper.calibration.source import TextSource
from grouper.calibration.text import text_of
from grouper.machine import Machine
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.methods import METHODS
from grouper.uptraining.shared_attention import SharedAttention
from grouper.uptraining.training import Training
from search.evaluation.models import evaluate_model

QUICK = UptrainOptions(tokens=4096, step_tokens=256, micro_tokens=128, window=64, validate=4, lr=3e-3)
PAIRS, UNEQUAL, FEWER = [0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 1, 2, 2, 3, 3], [0, 0, 0, 1, 1, 1, 1, 1]
LABELS = {
    "stock": [PAIRS] * 3, "padded": [UNEQUAL] * 3, "ragged": [PAIRS, UNEQUAL, FEWER], "split": [PAIRS] * 3
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(reader, tmp_path_factory):
    """Exports of the reader with four KV heads, by the mean of neighbours; beside it, as people keep them."""
    place = reader.parent
    made = {}
    for kind, labels in LABELS.items():
        made[kind] = place / f"exported-{kind}"
        export(
            reader,
            HeadLayout.from_labels(labels, 8, 16),
            made[kind],
            merge="mean",
            options=ExportOptions(max_padding=1.0, tp=3 if kind == "split" else 1),
        )
    return made


@pytest.fixture
def source(text):
    return TextSource(str(text))


@pytest.mark.parametrize("kind", LABELS)
def test_a_trained_model_is_nearer_to_its_original_and_of_the_same_class(folders, reader, source, tmp_path, kind):
    told = []
    done = uptrain_model(
        folders[kind], tmp_path / "out", source, QUICK, command="grouper uptrain", machine=Machine(tell=told.append)
    )
    assert done.export_class == ("padded" if kind == "split" else kind) and done.self_test.passed
    assert done.tp == (3 if kind == "split" else 1)
    other = {"source": TextSource("demo", purpose="evaluation"), "base": str(reader), "window": 64, "limit": 32}
    before, after = (evaluate_model(f, **other).values for f in (folders[kind], tmp_path / "out"))
    assert after["kl"] < 0.8 * before["kl"], "on text of another decade"
    facts = json.loads((tmp_path / "out" / "grouper.json").read_text())
    old = json.loads((folders[kind] / "grouper.json").read_text())
    assert facts["layout"] == old["layout"] and facts["base_model"] == old["base_model"] and facts["merge"] == "mean"
    assert facts["uptrained"]["method"] == "distill" and facts["uptrained"]["steps"] == 16
    assert facts["report"]["kv_bytes_per_token"] == old["report"]["kv_bytes_per_token"]
    assert facts["crc32"].keys() == old["crc32"].keys() and facts["crc32"] != old["crc32"], "of the new weights"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "crc32" not in config["grouper"], "where a tensor's name may be taken for a field's"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Then trained by `distill`" in card and "grouper uptrain" in card and "KL to the original" in card
    lines = [json.loads(line) for line in (tmp_path / "out" / "uptraining.jsonl").read_text().splitlines()]
    judged = [line["held_out"] for line in lines if "held_out" in line]
    assert len(judged) == 5 and judged[-1]["kl"] < judged[0]["kl"], "before it begins, and four times"
    assert "16 steps" in told[0] and "KL" in told[1]
    assert not list(tmp_path.glob("*.uptrain")), "what training kept is gone"


def test_a_killed_training_goes_on_to_the_same_files(folders, source, tmp_path):
    out = [tmp_path / "whole" / "out", tmp_path / "killed" / "out"]
    uptrain_model(folders["stock"], out[0], source, QUICK)

    def killed(done: int, _total: int, _note: str) -> None:
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        uptrain_model(folders["stock"], out[1], source, QUICK, machine=Machine(progress=killed))
    assert not out[1].exists() and list(out[1].parent.rglob("state.safetensors"))
    steps = []
    told = lambda done, _total, note: steps.append(done) if "loss" in note else None  # noqa: E731
    uptrain_model(folders["stock"], out[1], source, QUICK, machine=Machine(progress=told))
    assert min(steps) > 8, "it went on after the last validation"
    assert files_of(out[0]) == files_of(out[1])


def test_an_export_that_was_killed_goes_on_with_the_trained_weights(folders, source, tmp_path, monkeypatch):
    """After the last step the state on disk has no tensors: the weights that count are in a file of their own."""
    out = [tmp_path / "whole" / "out", tmp_path / "killed" / "out"]
    uptrain_model(folders["stock"], out[0], source, QUICK)
    with monkeypatch.context() as there, pytest.raises(KeyboardInterrupt):
        there.setattr("grouper.uptraining.uptrain.write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        uptrain_model(folders["stock"], out[1], source, QUICK)
    (state,) = out[1].parent.rglob("state.safetensors")
    assert load_file(state) == {}
    monkeypatch.setattr(Training, "step", lambda *_: pytest.fail("the training was over"))
    uptrain_model(folders["stock"], out[1], source, QUICK)
    assert files_of(out[0]) == files_of(out[1])


def test_the_best_weights_are_kept_and_patience_ends_it(folders, source, tmp_path, monkeypatch):
    """Scores are made worse from the third validation on: the second one's weights are written. From step 10 of 16 on
    the rate is less than half, and that validation is the last good one of those that count."""
    found, judge = [], Training.score

    def worse(self):
        score = judge(self)
        found.append(self.reached.step)
        return type(score)(score.nll, score.kl + max(0, len(found) - 2), score.agreement, score.teacher_nll)

    monkeypatch.setattr(Training, "score", worse)
    options = UptrainOptions(**{**vars(QUICK), "patience": 2, "validate": 8})
    uptrain_model(folders["stock"], tmp_path / "out", source, options)
    assert found[:8] == [0, 2, 4, 6, 8, 10, 12, 14] and len(found) == 9, "and the best one's score at the end"
    facts = json.loads((tmp_path / "out" / "grouper.json").read_text())["uptrained"]
    assert facts["steps"] == 14 and facts["best_step"] == 2
    monkeypatch.undo()
    two = UptrainOptions(**{**vars(options), "patience": 0})
    stopped = load_file(tmp_path / "out" / "model.safetensors")
    uptrain_model(folders["stock"], tmp_path / "all", source, two)
    whole = load_file(tmp_path / "all" / "model.safetensors")
    assert any(not torch.equal(stopped[n], whole[n]) for n in whole)


def test_a_training_that_betters_nothing_changes_nothing(folders, source, tmp_path):
    told, rough = [], UptrainOptions(**{**vars(QUICK), "lr": 0.5, "clip": 1e6})
    uptrain_model(folders["stock"], tmp_path / "out", source, rough, machine=Machine(tell=told.append))
    before, after = (load_file(f / "model.safetensors") for f in (folders["stock"], tmp_path / "out"))
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert "made nothing better" in told[1]
    assert json.loads((tmp_path / "out" / "grouper.json").read_text())["uptrained"]["best_step"] == 0


def test_a_start_refined_on_all_of_the_text_is_not_preferred_for_it(folders, reader, source, tmp_path):
    """As above, where nothing better is found; now the start's score says nothing, and the last weights are kept."""
    shutil.copytree(folders["stock"], tmp_path / "in")
    seen = Seen.of(text_of(Checkpoint.open(reader), source, 64))
    facts = json.loads((tmp_path / "in" / "grouper.json").read_text())
    refined = {"tokens": 0, "steps": 0, "scope": "block", "seen": seen.to_data()}
    (tmp_path / "in" / "grouper.json").write_text(json.dumps({**facts, "refined": refined}))
    told, rough = [], UptrainOptions(**{**vars(QUICK), "lr": 0.5, "clip": 1e6})
    uptrain_model(tmp_path / "in", tmp_path / "out", source, rough, base=str(reader), machine=Machine(tell=told.append))
    assert "has seen nearly all" in told[0]
    done = json.loads((tmp_path / "out" / "grouper.json").read_text())["uptrained"]
    assert done["best_step"] == done["steps"] == 16


def test_a_loss_that_is_no_number_stops_and_keeps_what_was_good(folders, source, tmp_path, monkeypatch):
    step = Training.step
    monkeypatch.setattr(Training, "step", lambda self, n: step(self, n) * (float("nan") if n >= 9 else 1.0))
    with pytest.raises(GrouperError, match=r"became nan at step 10: take a lower `lr`; the state of step 8 is kept"):
        uptrain_model(folders["stock"], tmp_path / "out", source, QUICK)
    assert not (tmp_path / "out").exists()
    (state,) = tmp_path.rglob("state.safetensors")
    assert all(torch.isfinite(t).all() for t in load_file(state).values())


def test_refusals(folders, reader, source, tmp_path):
    def refused(match: str, folder=folders["stock"], text=source, options=QUICK, **more):
        with pytest.raises(GrouperError, match=match):
            uptrain_model(folder, tmp_path / "out", text, options, **more)
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.uptrain"))

    refused("no grouper.json", folder=reader)
    refused("passes over", options=UptrainOptions(**{**vars(QUICK), "tokens": 10**8}))
    short = tmp_path / "short.txt"
    short.write_text("Too little to learn from. " * 4)
    refused("too few for one window", text=TextSource(str(short)))
    refused("takes text: give `text=FILE`, not `images`", text=TextSource(images=str(tmp_path)))
    other = add_tokenizer(make_model(tmp_path / "other", vocab_size=4100))
    refused("4,100 tokens, the exported model 4,096", teacher=str(other))
    wide = add_tokenizer(make_model(tmp_path / "wide", vocab_size=4096, heads=4))
    refused("not the model that", base=str(wide))
    refused("unknown way to train", options=UptrainOptions(**{**vars(QUICK), "method": "prayer"}))
    refused("`tracker=nonesuch` is not installed", options=UptrainOptions(**{**vars(QUICK), "tracker": "nonesuch"}))
    refused("no such parameter", options=UptrainOptions(**{**vars(QUICK), "set": ("dgqa.luck=1",)}))
    away = tmp_path / "away" / "exported"
    shutil.copytree(folders["stock"], away)
    facts = json.loads((away / "grouper.json").read_text())
    (away / "grouper.json").write_text(json.dumps({**facts, "base_model": "gone", "base_fingerprint": "0" * 64}))
    refused("gone, which .* neither here nor beside it: say `base=FOLDER`", folder=away)
    refined = {**facts, "merge": "spectral+refine"}
    (away / "grouper.json").write_text(json.dumps(refined))
    refused("merged by spectral", folder=away, options=UptrainOptions(**{**vars(QUICK), "method": "wgqa"}),
            base=str(reader))  # fmt: skip
    (away / "grouper.json").write_text(json.dumps({**facts, "report": {"format": "gguf"}}))
    refused("no model for transformers", folder=away, base=str(reader))
    damaged = edit_weights(folders["stock"], tmp_path / "damaged", lambda t: t["model.norm.weight"].fill_(float("nan")))
    refused("NaN", folder=damaged, base=str(reader))
    name = "model.layers.1.self_attn.o_proj.weight"
    wrong = edit_weights(folders["stock"], tmp_path / "wrong", lambda t: t.update({name: t[name][:, :-3].contiguous()}))
    refused("layer 1 of .* is not what its grouper.json says", folder=wrong, base=str(reader))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(GrouperError, match="not written by Grouper"):
        uptrain_model(folders["stock"], tmp_path / "out", source, QUICK)


def test_a_damaged_state_is_said_in_one_line(folders, source, tmp_path):
    def killed(done: int, _total: int, _note: str) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        uptrain_model(folders["stock"], tmp_path / "out", source, QUICK, machine=Machine(progress=killed))
    (state,) = tmp_path.rglob("state.safetensors")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(GrouperError, match=r"is damaged \(.*\): delete the folder it is in, and training begins anew"):
        uptrain_model(folders["stock"], tmp_path / "out", source, QUICK)


def test_a_full_disk_loses_nothing(folders, source, tmp_path, monkeypatch):
    from grouper import tensor_files

    write, calls = tensor_files.write_file, []

    def full(path, call):
        calls.append(path.name)
        if calls.count("state.safetensors") == 3:
            raise OSError(28, "No space left on device")
        write(path, call)

    monkeypatch.setattr(tensor_files, "write_file", full)
    with pytest.raises(OSError, match="No space"):
        uptrain_model(folders["stock"], tmp_path / "out", source, QUICK)
    monkeypatch.undo()
    uptrain_model(folders["stock"], tmp_path / "out", source, QUICK)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_teacher_streamed_from_disk_teaches_the_same(folders, source, tmp_path):
    for name, memory in (("held", None), ("streamed", 4096)):
        uptrain_model(folders["stock"], tmp_path / name, source, QUICK, machine=Machine(memory=memory))
    held, streamed = (load_file(tmp_path / n / "model.safetensors") for n in ("held", "streamed"))
    before = load_file(folders["stock"] / "model.safetensors")
    for name, tensor in held.items():
        moved = (tensor - before[name]).norm()
        assert (tensor - streamed[name]).norm() < 0.02 * moved + 1e-6, name


def test_accumulation_and_checkpointing_change_nothing_but_rounding(folders, source, tmp_path, monkeypatch):
    calls, forward = [], SharedAttention.forward
    monkeypatch.setattr(SharedAttention, "forward", lambda self, *a, **k: calls.append(1) or forward(self, *a, **k))
    whole = {**vars(QUICK), "tokens": 1024}
    variants = {
        "whole": {"micro_tokens": 256},
        "parts": {"micro_tokens": 64},
        "again": {"micro_tokens": 256, "checkpointing": True},
    }
    made, counts = {}, {}
    for name, change in variants.items():
        uptrain_model(folders["stock"], tmp_path / name, source, UptrainOptions(**{**whole, **change}))
        made[name] = load_file(tmp_path / name / "model.safetensors")
        counts[name] = len(calls)
        calls.clear()
    assert counts["again"] == counts["whole"] + 3 * (4 + 2), (
        "each layer once more, in four steps and two that are timed"
    )
    for name in ("parts", "again"):
        for key, tensor in made["whole"].items():
            assert torch.allclose(tensor, made[name][key], atol=2e-4), (name, key)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_ends_in_an_ordinary_export(folders, reader, source, tmp_path, method):
    options = UptrainOptions(
        **{**vars(QUICK), "method": method, "set": (("dgqa.every=4",) if "dgqa" in method else ())}
    )
    if method == "dgqa-diff":
        options = UptrainOptions(**{**vars(options), "set": ("dgqa-diff.every=4",)})
    done = uptrain_model(folders["stock"], tmp_path / "out", source, options)
    assert done.self_test.passed
    lines = [json.loads(line) for line in (tmp_path / "out" / "uptraining.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    layout = ExportedModel.open(tmp_path / "out", str(reader)).layout
    assert [layer.k.kv_heads for layer in layout.layers] == [4, 4, 4]
    assert all(sorted(layer.k.reader_order) == list(range(8)) for layer in layout.layers)
    if "dgqa" not in method:
        assert layout == ExportedModel.open(folders["stock"]).layout
    tokens = text_of(Checkpoint.open(tmp_path / "out"), source, 64, 4)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True, dtype=torch.float32)
    with torch.no_grad():
        loss = model(input_ids=tokens, labels=tokens).loss.item()
    # The written model's own loss is the trained one's, on other windows; distillation's is of another kind.
    assert loss == pytest.approx(losses[-1], rel=0.2) or method == "distill"


def test_low_rank_training_from_the_command_line(folders, text, tmp_path):
    pytest.importorskip("peft")  # the extra `lora`
    options = ["--train", "lora", "--tokens", "2048", "--step-tokens", "256", "--window", "64", "--lr", "0.003"]
    done = grouper("uptrain", folders["stock"], "-o", tmp_path / "out", "--text", text, *options, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["deploy"] == "stock" and "about" in done.stderr


def test_what_a_tracker_writes_stays(folders, source, tmp_path):
    pytest.importorskip("tensorboard", reason="trackers are none of our dependencies")
    options = UptrainOptions(**{**vars(QUICK), "tracker": "tensorboard"})
    uptrain_model(folders["stock"], tmp_path / "out", source, options)
    assert list((tmp_path / "out.logs").rglob("*tfevents*")) and not (tmp_path / "out.uptrain").exists()
