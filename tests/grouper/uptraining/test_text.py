"""What is trained on, and what counts of it."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from grouper import Checkpoint, GrouperError, UptrainOptions
from grouper.calibration.source import DATA, TextSource
from grouper.running.batch import Batch
from grouper.uptraining.options import UptrainPlan
from grouper.uptraining.text import TrainingText, of_chat, text_for

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = [
    {"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well, thank you."},
    {"role": "user", "content": "Good."}, {"role": "assistant", "content": "Is it?"},
]  # fmt: skip


@pytest.fixture
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(DATA / "demo", trust_remote_code=False)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_of_chats_the_answers_count(tokenizer):
    ids, counted = of_chat(tokenizer, CHAT)
    kept = tokenizer.decode([i for i, c in zip(ids, counted) if c])
    assert kept == "Well, thank you.\nIs it?\n"
    assert tokenizer.decode(ids).startswith("<user>How are you?\n<assistant>Well")


def test_a_template_that_rewrites_what_was_said_counts_whole(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}: " + TEMPLATE
    _, counted = of_chat(tokenizer, CHAT)
    assert all(counted)


def test_chats_in_a_file_and_plain_text(reader, tmp_path, tokenizer):
    for file in reader.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"messages": CHAT}) for _ in range(8)))
    found = text_for(Checkpoint.open(tmp_path), TextSource(str(tmp_path / "chats.jsonl")), 16)
    assert 0.2 < found.counted.float().mean() < 0.6
    plain = text_for(Checkpoint.open(tmp_path), TextSource("demo"), 64)
    assert plain.counted.all() and plain.batch.windows.shape[1] == 64
    with pytest.raises(GrouperError, match="too few"):
        text_for(Checkpoint.open(tmp_path), TextSource(str(tmp_path / "chats.jsonl")), 4096)


def test_what_is_held_out_is_not_trained_on_and_nothing_is_lost():
    tokens = torch.arange(40).view(10, 4)
    train, held = TrainingText(Batch.of(tokens), tokens >= 0).split(3)
    assert (len(train), len(held)) == (7, 3)
    assert sorted([*train.batch.windows.flatten().tolist(), *held.batch.windows.flatten().tolist()]) == list(range(40))
    with pytest.raises(GrouperError, match="more text"):
        TrainingText(Batch.of(tokens[:1]), tokens[:1] >= 0).split(1)


def test_how_much_is_held_out():
    """Twenty validations of it take a third of what is trained on, or its share of the text."""
    options = UptrainOptions(tokens=512 * 600, window=512, validate=20, held_out=0.02).plan("cpu", 10**9)
    assert options.held_out_windows(10_000) == 10
    assert options.held_out_windows(200) == 4
    assert options.held_out_windows(30) == 1, "of a short text little"


@pytest.mark.parametrize(
    "wrong",
    [{"tokens": 0}, {"window": 1}, {"lr": 0.0}, {"lr": 2.0}, {"clip": 0.0}, {"held_out": 0.0}, {"validate": 0},
     {"patience": -1}, {"train": "some"}, {"warm_up": 1.0}, {"lora_rank": 0}],
    ids=str,
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(GrouperError, match="expected"):
        UptrainOptions(**wrong)


def test_the_rate_rises_and_falls():
    options = UptrainPlan(tokens=512 * 100, step_tokens=512, window=512, lr=0.1, warm_up=0.1)
    rates = [options.rate(step) for step in range(options.steps)]
    assert rates[:10] == pytest.approx([0.01 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(0.1) and rates[55] == pytest.approx(0.05) and 0 < rates[-1] < 1e-3


def test_defaults_follow_the_text_and_the_device():
    short = UptrainOptions().plan("cpu", 5000)
    assert short.tokens == 60_000 and short.step_tokens == 2048, "twelve passes"
    assert UptrainOptions().plan("cpu", 10**9).tokens == 262_144
    assert UptrainOptions().plan("cuda", 10**9).tokens == 5_505_024
    assert UptrainOptions(window=4096).plan("cpu", 10**9).step_tokens == 4096


@pytest.mark.parametrize(("windows", "count"), [(9, 8), (10, 8), (17, 16), (100, 7)])
def test_as_many_are_held_out_as_asked(windows, count):
    tokens = torch.arange(2 * windows).view(windows, 2)
    train, held = TrainingText(Batch.of(tokens), tokens >= 0).split(count)
    assert (len(train), len(held)) == (windows - count, count)


def test_what_refinement_has_seen_is_not_held_out():
    tokens = torch.arange(40).view(10, 4)
    seen = torch.tensor([False, True, True, True, True, True, True, True, False, True])
    train, held = TrainingText(Batch.of(tokens), tokens >= 0).split(2, seen)
    assert held.batch.windows[:, 0].tolist() == [0, 32] and len(train) == 8


def test_what_is_held_out_is_spread_over_the_text():
    """The middles of as many equal parts: of 10 windows 1, 5 and 8; of the 6 unseen ones (1, 3, 4, 6, 7, 9) two."""
    tokens = torch.arange(40).view(10, 4)
    _, held = TrainingText(Batch.of(tokens), tokens >= 0).split(3)
    assert held.batch.windows[:, 0].tolist() == [4, 20, 32]
    seen = torch.tensor([True, False, True, False, False, True, False, False, True, False])
    train, held = TrainingText(Batch.of(tokens), tokens % 3 == 0).split(2, seen)
    assert held.batch.windows[:, 0].tolist() == [12, 28]
    assert all(torch.equal(part.counted, part.batch.windows % 3 == 0) for part in (held, train))


@pytest.mark.parametrize("validate", [5, 10, 40])
def test_validations_take_a_third_of_the_tokens_at_most(validate):
    options = UptrainOptions(tokens=512 * 600, window=512, validate=validate, held_out=0.5).plan("cpu", 10**9)
    assert options.held_out_windows(10**4) * options.window * validate == options.tokens // 3
    few = UptrainOptions(tokens=512 * 600, window=512, validate=300, held_out=0.5).plan("cpu", 10**9)
    assert few.held_out_windows(10**4) == 4 and few.held_out_windows(6) == 3 and few.held_out_windows(1) == 1


def test_steps_are_whole_and_tokens_at_least_one_step():
    options = UptrainOptions(tokens=1000, step_tokens=300, window=64).plan("cpu", 10**6)
    assert (options.step_windows, options.steps) == (4, 3)
    assert UptrainOptions(tokens=10, step_tokens=300, window=64).plan("cpu", 10**6).tokens == 300
    assert UptrainOptions().plan("cuda:1", 10**9).step_tokens == 8192
    last = UptrainPlan(tokens=512 * 4, step_tokens=512, window=512, lr=0.1, warm_up=0.0)
    assert [last.rate(step) for step in range(4)] == pytest.approx([0.1, 0.1, 0.075, 0.025])


def test_defaults_of_training():
    o = UptrainOptions()
    assert (o.method, o.window, o.lr, o.warm_up, o.weight_decay, o.clip) == ("distill", 512, None, 0.08, 0.0, 1.0)
    assert (o.train, o.lora_rank, o.validate, o.held_out, o.patience) == ("full", 32, 20, 0.02, 6)


def test_documents_follow_one_another_in_chats_and_the_last_half_window_is_left_out(reader, tmp_path, tokenizer):
    for file in reader.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer.save_pretrained(tmp_path)
    other = [{"role": "user", "content": "No?"}, {"role": "assistant", "content": "Yes, of course."}]
    rows = [json.dumps({"messages": chat}) for chat in (CHAT, other)]
    (tmp_path / "chats.jsonl").write_text("\n".join(rows))
    found = text_for(Checkpoint.open(tmp_path), TextSource(str(tmp_path / "chats.jsonl")), 6)
    (ids, counted), (more, answers) = (of_chat(tokenizer, chat) for chat in (CHAT, other))
    ids, counted = ids + more, counted + answers
    whole = len(ids) // 6 * 6
    assert len(ids) > whole, "something is left over"
    assert found.batch.windows.flatten().tolist() == ids[:whole] and found.counted.flatten().tolist() == counted[:whole]
