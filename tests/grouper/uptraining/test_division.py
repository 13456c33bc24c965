"""What is learnt of a text and what judges: what was set aside from the start, or windows that refinement has not
seen."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from toy_training import LAYOUT

from grouper import Checkpoint, UptrainOptions
from grouper.calibration import parts
from grouper.calibration.seen import Seen
from grouper.calibration.source import TextSource
from grouper.calibration.text import load_tokenizer, spread, text_of
from grouper.uptraining.division import among_all, divisions
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.options import Losses
from grouper.uptraining.saved import Reached, SavedTraining
from grouper.uptraining.text import text_for
from grouper.uptraining.uptrain import _key, as_begun

WINDOW = 16
OPTIONS = UptrainOptions(tokens=65_536, step_tokens=64, window=WINDOW, lr=1e-4, losses=Losses(), held_out=0.02)


def exported(original: Checkpoint, seen: Seen | None = None) -> ExportedModel:
    """An export, as far as its facts go."""
    folder = SimpleNamespace(fingerprint="in", name="in", title="in")
    return ExportedModel(folder, original, original, LAYOUT, {"refined": {"seen": seen.to_data()}} if seen else {})


@pytest.fixture
def original(reader, tmp_path) -> Checkpoint:
    """The tiny model whose tokenizer writes chats, too."""
    folder = shutil.copytree(reader, tmp_path / "original")
    path = folder / "tokenizer_config.json"
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return Checkpoint.open(folder)


@pytest.fixture
def small(monkeypatch):
    """Texts of 32,000 bytes are long: stretches of 4,000 have 250 bytes that judge, around their middle."""
    monkeypatch.setattr(parts, "LONG", 32_000)
    monkeypatch.setattr(parts, "GAP", 40)


@pytest.fixture
def plain(tmp_path) -> TextSource:
    """Words with their numbers, so that each is known wherever it stands; 40,000 bytes."""
    (tmp_path / "text.txt").write_text(" ".join(f"w{i:04} said so" for i in range(2800)))
    return TextSource(str(tmp_path / "text.txt"))


@pytest.fixture
def chats(tmp_path) -> TextSource:
    """160,000 bytes of chats; 10,000 of them judge, in stretches of 1,250: ten chats each, of 110 bytes."""
    rows = ({"messages": [{"role": "user", "content": f"q{i:04}"}, {"role": "assistant", "content": f"a{i:04}"}]}
            for i in range(1500))  # fmt: skip
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TextSource(str(tmp_path / "chats.jsonl"))


def words(original: Checkpoint, tokens: torch.Tensor, pattern: str) -> set[str]:
    """Words of windows; none is made of two."""
    tokenizer = load_tokenizer(original)
    return set(re.findall(pattern, "|".join(tokenizer.decode(window) for window in tokens.tolist())))


def test_a_long_text_is_judged_by_what_was_set_aside(small, original, plain):
    """And a refinement that has seen all that may be learnt flatters nothing."""
    seen = Seen.of(text_of(original, plain, 32))
    found = list(divisions(exported(original, seen), plain, OPTIONS, "cpu"))
    assert [division.flattered for division in found] == [False, False]
    learnt, judged = (words(original, e.batch.windows, r"w\d{4}") for e in (found[0].learnt, found[0].judged))
    assert len(learnt) > 1900 and len(judged) > 20
    assert learnt & judged == set()
    everything = text_for(original, plain, WINDOW)
    assert torch.equal(found[0].learnt.batch.windows, everything.batch.windows), "all that may be learnt is"
    count = found[0].plan.held_out_windows(len(found[0].learnt) + len(judging(original, plain)))
    assert torch.equal(found[0].judged.batch.windows, spread(judging(original, plain), count))


def judging(original: Checkpoint, source: TextSource) -> torch.Tensor:
    return text_for(original, TextSource(source.text, part="judged"), WINDOW).batch.windows


def test_what_an_older_refinement_saw_of_it_does_not_judge(small, original, plain):
    """Of the half that it has not seen there is enough; then it has seen all."""
    whole = text_of(original, TextSource(plain.text, part="whole"), WINDOW)
    half = Seen.of(whole[: len(whole) // 2])
    (first, second) = divisions(exported(original, half), plain, OPTIONS, "cpu")
    judges = words(original, first.judged.batch.windows, r"w\d{4}")
    known = {word for word in judges if word < "w1400"}
    assert len(known) <= 16 and len(judges) > 32, "but for windows that it saw half of, at the edges of stretches"
    assert not first.flattered and not second.flattered
    everything = list(divisions(exported(original, Seen.of(whole)), plain, OPTIONS, "cpu"))
    assert [division.flattered for division in everything] == [True]


def test_a_short_text_is_divided_as_before(original, plain):
    found = list(divisions(exported(original), plain, OPTIONS, "cpu"))
    text = text_for(original, plain, WINDOW)
    learnt, judged = text.split(found[0].plan.held_out_windows(len(text)))
    assert len(found) == 1 and torch.equal(found[0].judged.batch.windows, judged.batch.windows)
    assert torch.equal(found[0].learnt.batch.windows, learnt.batch.windows)


def test_windows_that_refinement_has_not_seen_judge_a_short_text(original, plain):
    text = text_for(original, plain, WINDOW)
    count = OPTIONS.plan("cpu", text.tokens).held_out_windows(len(text))
    but_the_last = Seen.of(text.batch.windows[:-count])
    found = among_all(exported(original, but_the_last), plain, OPTIONS, "cpu")
    assert torch.equal(found.judged.batch.windows, text.batch.windows[-count:]) and not found.flattered
    but_fewer = Seen.of(text.batch.windows[: 1 - count])
    assert among_all(exported(original, but_fewer), plain, OPTIONS, "cpu").flattered


def test_of_chats_one_window_that_was_seen_makes_all_of_them_seen(original, chats):
    """Refinement cuts chats otherwise than training does: which window is which is not known."""
    seen = Seen.of(text_of(original, chats, 64)[:1])
    assert among_all(exported(original, seen), chats, OPTIONS, "cpu").flattered
    elsewhere = Seen.of(text_of(original, chats, 64)[:1] + 1)
    assert not among_all(exported(original, elsewhere), chats, OPTIONS, "cpu").flattered


def test_chats_that_were_set_aside_judge(small, original, chats):
    """However much of the others refinement has seen."""
    seen = Seen.of(text_of(original, chats, 64))
    first, second = divisions(exported(original, seen), chats, OPTIONS, "cpu")
    assert (first.flattered, second.flattered) == (False, True)
    learnt, judged = (words(original, e.batch.windows, r"q\d{4}") for e in (first.learnt, first.judged))
    assert len(judged) > 20 and len(learnt) > 1000 and not learnt & judged
    assert not first.judged.counted.all() and first.judged.counted.any(), "answers alone count"


def test_a_training_that_an_older_version_began_goes_on_with_its_division(small, original, plain, tmp_path):
    model, work = exported(original), tmp_path / "out.uptrain"
    now, older = divisions(model, plain, OPTIONS, "cpu")
    division, saved = as_begun(model, None, plain, OPTIONS, "cpu", work)
    assert torch.equal(division.judged.batch.windows, now.judged.batch.windows)
    for begun in (older, now):
        key = _key(model, None, begun)
        place = SavedTraining(work / key)
        place.save(place.state, {"a": torch.zeros(1)}, Reached(step=3))
        division, saved = as_begun(model, None, plain, OPTIONS, "cpu", work)
        assert torch.equal(division.judged.batch.windows, begun.judged.batch.windows) and saved.folder == place.folder
