"""Text that a model writes itself: prompts, answers by seed, and a file that is gone on with."""

import json

import pytest
import torch
from tiny_models import add_tokenizer, make_model

from grouper import Checkpoint, GrouperError
from grouper.calibration import own_answers
from grouper.calibration.own_answers import OwnAnswers, Writer, prompts_of, rendered
from grouper.calibration.source import TextSource
from grouper.calibration.text import load_tokenizer
from grouper.machine import Machine


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(own_answers, "LONGEST", 12)
    monkeypatch.setitem(own_answers.AT_ONCE, "cpu", 4)


@pytest.fixture
def asked(reader, tmp_path):
    def get(text="self", tokens=150, seed=0) -> OwnAnswers:
        return OwnAnswers.of(TextSource(text), Checkpoint.open(reader), tokens, seed, "cpu")

    return get


def prompts_file(path, content: str) -> TextSource:
    path.write_text(content)
    return TextSource(f"self:{path}")


def user(*words: str) -> list:
    return [[{"role": "user", "content": word}] for word in words]


def test_prompts_are_lines_or_rows(tmp_path):
    assert len(prompts_of(TextSource("self"))) == 64
    assert prompts_of(prompts_file(tmp_path / "a.txt", "One?\n\n  Two? \n")) == user("One?", "Two?")
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    rows = "\n".join(json.dumps(row) for row in ({"prompt": "p"}, {"messages": chat}))
    assert prompts_of(prompts_file(tmp_path / "a.jsonl", rows)) == [*user("p"), chat[:2]]


@pytest.mark.parametrize("row", ["{", "[]", '{"text": "x"}', '{"messages": [{"role": "assistant", "content": "a"}]}'])
def test_a_row_that_is_no_prompt_is_named(tmp_path, row):
    with pytest.raises(GrouperError, match=r"line 2 of .*a\.jsonl is no prompt"):
        prompts_of(prompts_file(tmp_path / "a.jsonl", f'{{"prompt": "p"}}\n{row}'))


def test_a_file_without_prompts_is_refused(tmp_path):
    with pytest.raises(GrouperError, match="has no prompts"):
        prompts_of(prompts_file(tmp_path / "a.txt", " \n"))


def test_answers_are_of_a_seed_and_as_many_as_asked(asked, tmp_path, monkeypatch):
    told = []
    path = asked().path(tmp_path)
    asked().write(path, Machine("cpu", tell=told.append))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(told) == 1 and "answers 64 prompts in turns, 150 tokens: about" in told[0]
    assert len(rows) % 4 == 0 and sum(row["tokens"] for row in rows) >= 150 > sum(row["tokens"] for row in rows[:-4])
    assert all(0 <= row["answer_tokens"] <= 12 < row["tokens"] for row in rows)
    assert all(
        row["text"].startswith(prompt[0]["content"]) for row, prompt in zip(rows, prompts_of(TextSource("self")))
    )
    other = asked(seed=1)
    assert other.path(tmp_path) != path
    other.write(other.path(tmp_path), Machine("cpu"))
    assert other.path(tmp_path).read_text() != path.read_text()
    torch.manual_seed(99)  # the caller's own state decides nothing, and is not touched
    state = torch.get_rng_state()
    asked().write(tmp_path / "again.jsonl", Machine("cpu"))
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes() and torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(Writer, "open", None)  # enough is there: no model is loaded
    asked().write(path, Machine("cpu"))


def test_a_killed_command_goes_on_with_the_same_answers(asked, tmp_path, monkeypatch):
    path = asked(tokens=350).path(tmp_path)
    asked(tokens=350).write(path, Machine("cpu"))
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    assert len(lines) > 8
    path.write_text("".join(lines[:6]))  # the second batch is not whole
    told, batch, begun = [], Writer.batch, []
    monkeypatch.setattr(Writer, "batch", lambda self, begin, *more: begun.append(begin) or batch(self, begin, *more))
    asked(tokens=350).write(path, Machine("cpu", tell=told.append))
    assert path.read_text() == whole and begun[0] == 4 and "of them done" in told[0]
    for damage in ("{", '{"text": "a", "tokens": "many", "answer_tokens": 1}', '{"text": "a"}', "[" * 10**5):
        path.write_text(damage)
        with pytest.raises(GrouperError, match=r"is damaged \(.*\): delete it, and it is written again"):
            asked(tokens=350).write(path, Machine("cpu"))


def test_what_decides_the_answers_names_their_file(asked, models, tmp_path):
    prompts = prompts_file(tmp_path / "a.txt", "One?")
    keys = {asked().key, asked(tokens=151).key, asked(seed=1).key, asked(prompts.text).key}
    other = OwnAnswers.of(TextSource("self"), Checkpoint.open(models("llama")), 150, 0, "cpu")
    assert len(keys | {other.key}) == 5 and asked().key == asked().key


def test_prompts_are_written_by_the_chat_template(reader):
    tokenizer = load_tokenizer(Checkpoint.open(reader))
    plain = rendered(tokenizer, [{"role": "user", "content": "One?"}])
    assert tokenizer.decode(plain).endswith("One?\n")
    turns = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}[you]{% endif %}"
    told = rendered(tokenizer, [{"role": "user", "content": "One?"}])
    assert tokenizer.decode(told) == "[user] One? [you]"


def test_an_answer_ends_where_the_model_ends_it(reader):
    writer = Writer.open(Checkpoint.open(reader), "cpu", prompts_of(TextSource("self")))
    writer.model.generation_config.eos_token_id = list(range(4096))  # whatever comes first
    for row in writer.batch(0, 4, seed=0):
        assert row.answer_tokens <= 1


def test_answers_of_padded_prompts_are_those_of_one_alone(reader):
    """Greedy, so that chance decides nothing; padding on the left is masked."""
    writer = Writer.open(Checkpoint.open(reader), "cpu", user("One?", "Write a much longer letter to a far friend."))
    generate = writer.model.generate
    writer.model.generate = lambda **given: generate(**{**given, "do_sample": False})
    together = writer._generated(writer.asked, 8, 0)
    assert together == [writer._generated([ids], 8, 0)[0] for ids in writer.asked]


def test_what_cannot_write_is_refused(encoders, asked, reader, tmp_path, monkeypatch):
    bert = OwnAnswers.of(TextSource("self"), Checkpoint.open(encoders("bert")), 150, 0, "cpu")
    with pytest.raises(GrouperError, match="`text=self` is for decoders"):
        bert.write(tmp_path / "a.jsonl", Machine("cpu"))
    with pytest.raises(GrouperError, match=r"prompt 1 has \d+ tokens: expected 1 to 128"):
        Writer.open(Checkpoint.open(reader), "cpu", user("word " * 200))
    monkeypatch.setattr(own_answers, "free_memory", lambda: 1e6)
    with pytest.raises(GrouperError, match=r"GB are free: write answers with a serving engine, and give them"):
        asked().write(tmp_path / "a.jsonl", Machine("cpu"))
    assert not list(tmp_path.iterdir())


def test_own_text_is_not_for_measuring():
    with pytest.raises(GrouperError, match="self is text to learn from"):
        _ = TextSource("self", purpose="evaluation").path


def test_a_file_called_self_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "self").write_text("words")
    assert TextSource("self").path.read_text() == "words" and not own_answers.asks_for_own(TextSource("self"))


def test_a_model_of_another_vocabulary_is_no_matter(tmp_path):
    """Answers of a model with an end-of-text token of its own are read back as its tokens."""
    folder = add_tokenizer(make_model(tmp_path / "model", vocab_size=4096, num_hidden_layers=1))
    asked = OwnAnswers.of(TextSource("self"), Checkpoint.open(folder), 40, 3, "cpu")
    asked.write(asked.path(tmp_path), Machine("cpu"))
    assert TextSource(str(asked.path(tmp_path))).documents(lambda: None).size > 0
