"""Who teaches: in memory, or as many steps at a time as there is room for."""

import pytest
import torch
from tiny_models import add_tokenizer, make_model
from toy_training import Toy, toy_teacher

from grouper import Checkpoint, GrouperError
from grouper.running.batch import Batch
from grouper.uptraining.teacher import StreamedTeacher, Teacher, check_teacher, open_teacher


@pytest.mark.parametrize("hidden", [True, False])
def test_the_streams_of_as_many_steps_as_half_of_memory_holds(reader, hidden):
    """Float32 streams of width 64 for 32 tokens a step: behind each of three layers and one on the way, or two."""
    checkpoint = Checkpoint.open(reader)
    size = 4 * checkpoint.parameters
    assert type(open_teacher(checkpoint, "cpu", torch.float32, size, hidden, 32)) is Teacher
    assert type(open_teacher(checkpoint, "cpu", torch.bfloat16, size / 2, hidden, 32)) is Teacher
    a_step = 4 * 64 * 32 * (4 if hidden else 2)
    streamed = open_teacher(checkpoint, "cpu", torch.float32, 2 * 5.5 * a_step, hidden, 32)
    assert isinstance(streamed, StreamedTeacher) and (streamed.ahead, streamed.hidden) == (5, hidden)
    assert open_teacher(checkpoint, "cpu", torch.float32, 10, hidden, 32).ahead == 1
    assert 2 * 5.5 * a_step < size - 1, "so it was not in memory"


def test_a_teacher_gives_its_logits_and_the_streams_behind_its_layers():
    """Logits of each next token, so none of the last place."""
    tokens, toy = torch.tensor([[1, 2, 3], [4, 5, 6]]), Toy(1)
    logits, streams, vectors = toy_teacher().answers(Batch.of(tokens), True, "cpu")
    assert torch.equal(logits, toy(tokens).logits[:, :-1]) and not logits.requires_grad and vectors is None
    assert len(streams) == 2 and all(torch.equal(a, b) for a, b in zip(streams, toy.streams(tokens)))
    assert toy_teacher().answers(Batch.of(tokens), False, "cpu").hidden == []


def test_a_streamed_teacher_knows_what_it_was_told_of(reader):
    checkpoint = Checkpoint.open(reader)
    batch = Batch.of(torch.randint(0, 199, (4, 8), generator=torch.Generator().manual_seed(0)))
    held = open_teacher(checkpoint, "cpu", torch.float32, 10**12, True, 32)
    streamed = open_teacher(checkpoint, "cpu", torch.float32, 10**6, True, 32)
    streamed.prepare(batch[:3])
    assert streamed.knows(batch[[2, 0]]) and not streamed.knows(batch[2:])
    ours, theirs = (teacher.answers(batch[[2, 0]], True, "cpu") for teacher in (streamed, held))
    assert torch.allclose(ours.logits, theirs.logits, atol=1e-4) and len(ours.hidden) == len(theirs.hidden) == 3
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours.hidden, theirs.hidden))
    assert streamed.answers(batch[:1], False, "cpu").hidden == []


def test_a_streamed_teacher_whose_hidden_states_nobody_wants_keeps_the_last_stream_alone(reader):
    checkpoint = Checkpoint.open(reader)
    batch = Batch.of(torch.randint(0, 199, (3, 8), generator=torch.Generator().manual_seed(0)))
    streamed = open_teacher(checkpoint, "cpu", torch.float32, 10**6, False, 32)
    streamed.prepare(batch)
    logits, streams, _ = streamed.answers(batch[[2, 0]], False, "cpu")
    assert len(streamed.streams) == 1 and streams == []
    held = open_teacher(checkpoint, "cpu", torch.float32, 10**12, False, 32).answers(batch[[2, 0]], False, "cpu")
    assert torch.allclose(logits, held.logits, atol=1e-4)


def test_a_teacher_speaks_of_the_same_tokens(reader, tmp_path):
    same = add_tokenizer(make_model(tmp_path / "same", vocab_size=4096, heads=4))
    check_teacher(Checkpoint.open(same), Checkpoint.open(reader))
    text = (same / "tokenizer.json").read_text()
    (same / "tokenizer.json").write_text(text.replace('"vocab"', '"vocab": {"another": 0}, "old"', 1))
    with pytest.raises(GrouperError, match="has another tokenizer"):
        check_teacher(Checkpoint.open(same), Checkpoint.open(reader))


def test_a_teacher_takes_the_same_inputs(reader, encoders):
    with pytest.raises(GrouperError, match="is a vit, the exported model a llama"):
        check_teacher(Checkpoint.open(encoders("vit")), Checkpoint.open(reader))
