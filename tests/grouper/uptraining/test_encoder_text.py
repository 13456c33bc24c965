"""What models with an encoder are trained on, what counts of it, and what judges."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from encoder_samples import BERT, examples, files_for, make, with_reader
from toy_training import LAYOUT

from grouper import Checkpoint, GrouperError, UptrainOptions
from grouper.calibration import parts
from grouper.calibration.calibration import Calibration
from grouper.calibration.seen import Seen, SeenExamples
from grouper.calibration.source import TextSource
from grouper.calibration.text import load_tokenizer
from grouper.compress import Regrouper
from grouper.refinement.options import RefineOptions
from grouper.running.batch import NOT_ASKED, Batch
from grouper.uptraining.division import divisions
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.options import Losses
from grouper.uptraining.text import TrainingText, places_of, text_for

OPTIONS = UptrainOptions(tokens=65_536, step_tokens=96, window=24, lr=1e-4, losses=Losses(), held_out=0.2)


@pytest.fixture
def opened(encoders, tmp_path):
    """opened("t5", "pairs"): the model with what reads files, and files for it."""

    def get(name: str, kind: str) -> tuple[Checkpoint, TextSource]:
        model = with_reader(encoders(name), tmp_path / name)
        return Checkpoint.open(model), TextSource(**files_for(kind, tmp_path / kind))

    return get


def exported(original: Checkpoint, seen: SeenExamples | None = None) -> ExportedModel:
    """An export, as far as its facts go."""
    folder = SimpleNamespace(fingerprint="in", name="in", title="in")
    return ExportedModel(folder, original, original, LAYOUT, {"refined": {"seen": seen.to_data()}} if seen else {})


def rows_of(batch: Batch) -> list[str]:
    return [batch[i : i + 1].digest for i in range(len(batch))]


def test_what_counts_of_masked_text_is_what_is_masked(opened):
    checkpoint, source = opened("bert", "text")
    text = text_for(checkpoint, source, 24)
    assert torch.equal(text.weights, text.batch.labels != NOT_ASKED) and 0.05 < text.weights.float().mean() < 0.25
    assert text.weights.shape == (len(text), 24) and text.tokens == 24 * len(text)


def test_what_counts_of_pairs_is_what_is_written_and_of_pictures_a_class_each(opened):
    pairs, pictures = (text_for(*opened(name, kind), 24) for name, kind in (("t5", "pairs"), ("vit", "pictures")))
    assert torch.equal(pairs.weights, pairs.batch.labels != NOT_ASKED) and not pairs.weights.all()
    assert pictures.weights.shape == (30, 1) and pictures.weights.all() and pictures.tokens == 30 * 17


@pytest.mark.parametrize(
    ("saved", "places"),
    [("BertForTokenClassification", 12), ("BertForQuestionAnswering", 2), ("BertForSequenceClassification", 1),
     ("BertModel", 1)],
)  # fmt: skip
def test_where_no_answers_are_known_every_place_counts_that_is_no_filling(tmp_path, saved, places):
    folder = make(tmp_path / saved, "bert", {**BERT, "num_labels": 3}, saved)
    batch = examples(folder)
    text = TrainingText.of(batch, places_of(Checkpoint.open(folder), batch))
    every = torch.ones(len(batch), places, dtype=torch.bool)
    assert batch.labels is None and not batch.read.all()
    assert torch.equal(text.weights, batch.read if places == 12 else every)


@pytest.mark.parametrize(("name", "kind"), [("bert", "text"), ("vit", "pictures"), ("t5", "pairs")])
def test_examples_are_divided_and_none_is_lost(opened, name, kind):
    text = text_for(*opened(name, kind), 24)
    learnt, judged = text.split(5)
    assert len(judged) == 5 and sorted(rows_of(learnt.batch) + rows_of(judged.batch)) == sorted(rows_of(text.batch))
    for part in (learnt, judged, text.spread(4)):
        places = [rows_of(text.batch).index(row) for row in rows_of(part.batch)]
        assert torch.equal(part.weights, text.weights[places])
    assert learnt.digests != judged.digests and learnt.digests == text.split(5)[0].digests
    with pytest.raises(GrouperError, match="more text"):
        judged.split(5)


@pytest.mark.parametrize(("name", "kind"), [("bert", "text"), ("vit", "pictures"), ("t5", "pairs")])
def test_another_example_or_answer_makes_another_text(opened, name, kind):
    text = text_for(*opened(name, kind), 24)
    inputs, labels = text.batch.inputs, text.batch.labels
    first = next(iter(inputs))
    others = [
        replace(text, batch=replace(text.batch, inputs={**inputs, first: inputs[first].flip(0)})),
        replace(text, batch=replace(text.batch, labels=labels.flip(0))),
        replace(text, counted=~text.counted),
    ]
    assert len({tuple(one.digests) for one in (text, *others)}) == 4


@pytest.mark.parametrize(("name", "kind"), [("t5", "pairs"), ("vit", "pictures")])
def test_what_refinement_saw_of_examples_does_not_judge(opened, name, kind):
    """As long as there is enough else; with one less, all may judge, and the start is said to be flattered."""
    checkpoint, source = opened(name, kind)
    batch = text_for(checkpoint, source, 24).batch
    count = round(0.2 * len(batch))
    for unseen, flattered in ((count + 3, False), (count, False), (count - 1, True)):
        model = exported(checkpoint, SeenExamples.of(batch[: len(batch) - unseen]))
        (found,) = divisions(model, source, OPTIONS, "cpu")
        judged = [rows_of(batch).index(row) for row in rows_of(found.judged.batch)]
        assert found.flattered == flattered and len(judged) == count and found.plan.window == batch.tokens
        assert (min(judged) >= len(batch) - unseen) != flattered
        assert not set(rows_of(found.learnt.batch)) & set(rows_of(found.judged.batch))


def test_an_example_is_known_by_all_but_its_filling(encoders):
    """Of which others that it is read with may ask for more or for less."""
    batch = examples(encoders("t5"))
    seen = Seen.from_data(SeenExamples.of(batch[[3, 1]]).to_data())
    assert isinstance(seen, SeenExamples) and seen.touches(batch).tolist() == [False, True, False, True, False, False]
    more = {name: torch.nn.functional.pad(given, (0, 3)) for name, given in batch.inputs.items()}
    longer = Batch(more, torch.nn.functional.pad(batch.labels, (0, 5), value=NOT_ASKED), 32)
    assert seen.touches(longer).tolist() == seen.touches(batch).tolist()
    for name in ("input_ids", "labels"):
        other = Batch({n: t.clone() for n, t in batch.inputs.items()}, batch.labels.clone(), batch.tokens)
        (other.labels if name == "labels" else other.inputs[name])[1, 0] += 1
        assert seen.touches(other).tolist() == [False, False, False, True, False, False], name
    assert Seen.from_data({"hashes": "no base64"}) is Seen.from_data({"hashes": ""}) is None


@pytest.mark.parametrize(("name", "kind"), [("bert", "text"), ("t5", "pairs"), ("vit", "pictures")])
def test_training_knows_what_refinement_saw(opened, name, kind):
    checkpoint, source = opened(name, kind)
    batch = text_for(checkpoint, source, 24).batch
    tokens = 7 * batch.tokens
    regrouper, options = Regrouper(checkpoint, Calibration(source, tokens, 24)), RefineOptions(tokens=tokens)
    seen = regrouper.seen(options)
    (refined,) = regrouper.texts(options)
    assert seen.touches(batch).tolist() == [row in rows_of(refined) for row in rows_of(batch)]
    assert int(seen.touches(batch).sum()) == 7
    (found,) = divisions(exported(checkpoint, seen), source, OPTIONS, "cpu")
    assert not found.flattered and not seen.touches(found.judged.batch).any()


def test_pairs_are_known_where_longer_ones_are_cut_later(opened):
    """Refinement has seen all of them, of 24 tokens at most; those that are as short are the same to training."""
    checkpoint, source = opened("t5", "pairs")
    seen = Regrouper(checkpoint, Calibration(source, 10**6, 24)).seen(RefineOptions(tokens=10**6))
    batch = text_for(checkpoint, source, 64).batch
    short = (batch.read.sum(1) < 24) & (batch.written.sum(1) < 24)
    assert 10 < short.sum() < len(batch) - 5 and seen.touches(batch)[short].all()


def test_masked_text_that_was_set_aside_judges(opened, tmp_path, monkeypatch):
    """As that of decoders: 40,000 bytes are long here, and stretches of 4,000 have 250 that judge."""
    monkeypatch.setattr(parts, "LONG", 32_000)
    monkeypatch.setattr(parts, "GAP", 40)
    checkpoint, _ = opened("bert", "text")
    (tmp_path / "long.txt").write_text(" ".join(f"w{i:04} said so" for i in range(2800)))
    first, second = divisions(exported(checkpoint), TextSource(str(tmp_path / "long.txt")), OPTIONS, "cpu")
    learnt, judged = (words(checkpoint, part.batch) for part in (first.learnt, first.judged))
    assert len(learnt) > 1000 and len(judged) > 20 and not learnt & judged
    assert not first.flattered and len(second.learnt) > len(first.learnt)
    long = replace(OPTIONS, window=2000)
    short = next(divisions(exported(checkpoint), TextSource(str(tmp_path / "long.txt")), long, "cpu"))
    assert short.plan.window == 64, "as many tokens as it has places for"


def words(checkpoint: Checkpoint, batch: Batch) -> set[str]:
    """Words of windows as they were before some was masked."""
    ids = torch.where(batch.labels == NOT_ASKED, batch.inputs["input_ids"], batch.labels)
    tokenizer = load_tokenizer(checkpoint)
    return set(re.findall(r"w\d{4}", "|".join("".join(tokenizer.convert_ids_to_tokens(row)) for row in ids.tolist())))
