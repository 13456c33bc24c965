"""Samples of text: how the original and regrouped models go on with a prompt."""

import json

import pytest
import torch
from tiny_models import add_tokenizer, make_model

from grouper import Checkpoint, HeadLayout
from grouper.calibration.source import TextSource
from grouper.calibration.text import load_tokenizer
from grouper.compress import Regrouper
from grouper.merging import MERGES
from grouper.running.in_memory import InMemoryModel
from search import SearchOptions, evaluate, search
from search.evaluation.meter import ADDED, PROMPT, Meter, continuation
from search.options import COMPUTING
from search.runs.samples import FILE, note_sample, read_samples


def likeliest(model, prompt: torch.Tensor, tokens: int) -> list[int]:
    """Greedy decoding without a cache: the whole text goes through the model for each token."""
    found = prompt.tolist()
    with torch.inference_mode():
        for _ in range(tokens):
            found.append(int(model(input_ids=torch.tensor([found]), use_cache=False).logits[0, -1].argmax()))
    return found[len(prompt) :]


def meter_of(folder, windows: torch.Tensor, **options) -> Meter:
    return Meter(Regrouper(Checkpoint.open(folder), None, **options), {"": windows}, None, COMPUTING)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_a_regrouped_model_goes_on_by_its_likeliest_tokens(models, family):
    """With a cache as without one, under layouts with counts of their own in every layer; the original is as before."""
    folder = models(family, heads=8, kv_heads=4)
    model = InMemoryModel(Checkpoint.open(folder))
    plain = type("Plain", (), {"decode": staticmethod(lambda ids: " ".join(map(str, ids.tolist())))})
    prompt = torch.arange(5, 15)
    layout = HeadLayout.from_labels([[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 2]], 8, model.architecture.head_dim)
    regrouper = Regrouper(Checkpoint.open(folder), None)
    merged = regrouper.merged(layout, MERGES.named("mean"), None)
    original = continuation(model.model, plain, prompt, 12)
    with model.installed(layout, merged) as installed:
        found = continuation(installed, plain, prompt, 12)
        assert found == " ".join(map(str, likeliest(installed, prompt, 12)))
    assert original == continuation(model.model, plain, prompt, 12)
    assert original == " ".join(map(str, likeliest(model.model, prompt, 12))) and found != original


def test_a_meter_samples_decoders_in_memory_that_have_room(reader, tmp_path):
    tokens = torch.arange(2 * 64).view(2, 64) % 50
    meter = meter_of(reader, tokens)
    assert meter.prompt.tolist() == tokens[0, :PROMPT].tolist()
    tokenizer = load_tokenizer(Checkpoint.open(reader))
    wanted = continuation(meter.regrouper.model.model, tokenizer, tokens[0, :PROMPT], ADDED)
    assert meter.sample() == {"prompt": tokenizer.decode(tokens[0, :PROMPT]), "text": wanted}
    assert Meter(meter.regrouper, {}, None, COMPUTING).sample() == {}, "no text"
    assert meter_of(reader, tokens, memory=1).sample() == {}, "streamed: a pass through the disk for each token"
    for longest in (PROMPT + ADDED - 1, PROMPT + ADDED):
        model = make_model(tmp_path / str(longest), vocab_size=4096, max_position_embeddings=longest)
        assert meter_of(model, tokens).prompt is None, "no tokenizer writes it down"
        has_room = longest == PROMPT + ADDED
        assert (meter_of(add_tokenizer(model), tokens).prompt is not None) == has_room


def test_an_evaluation_keeps_a_sample_of_each_row_and_measuring_anew_forgets_them(reader, text, tmp_path):
    run = tmp_path / "run"
    search(reader, run, SearchOptions(fitness="weight", generations=2, population=8))
    source = TextSource(str(text))
    evaluate(run, source, window=64, limit=2, layouts="0,1")
    before = read_samples(run)
    assert [one["layout"] for one in before] == [0, 1] and len({one["prompt"] for one in before}) == 1
    assert all(one["text"] for one in before)
    evaluate(run, source, window=64, limit=2, layouts="0,1,2")
    assert read_samples(run)[:2] == before and len(read_samples(run)) == 3
    evaluate(run, source, window=32, limit=2, layouts="2", overwrite=True)
    assert [one["layout"] for one in read_samples(run)] == [0, 2], "the original is always measured"


def test_the_last_sample_of_a_layout_and_merge_counts(tmp_path):
    for merge, text in (("mean", "a"), ("spectral", "b"), ("mean", "c")):
        note_sample(tmp_path, 7, merge, "Ä\n", text)
    spectral, mean = read_samples(tmp_path)
    assert spectral == {"layout": 7, "merge": "spectral", "prompt": "Ä\n", "text": "b"} and mean["text"] == "c"


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", '{"samples": 3}', '{"samples": [3, {"layout": 1}]}',
        '{"samples": [{"layout": true, "merge": "", "prompt": "", "text": ""}]}',
    ],
)  # fmt: skip
def test_damaged_samples_are_none(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    assert read_samples(tmp_path) == [] == read_samples(tmp_path / "nowhere")
    good = {"layout": 1, "merge": "mean", "prompt": "a", "text": "b"}
    (tmp_path / FILE).write_text(json.dumps({"samples": ["x", {**good, "more": 1}]}))
    assert read_samples(tmp_path) == [good]
