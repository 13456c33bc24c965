"""Pictures, sounds and pairs: what is taken of files."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.io import wavfile

from grouper import GrouperError
from grouper.calibration.images import numbers_of, picture_files
from grouper.calibration.reading import positions
from grouper.calibration.sounds import samples_of
from grouper.calibration.source import TextSource, named_sources
from grouper.families.decoders import FAMILIES


def classes(*names: str) -> SimpleNamespace:
    known = {"id2label": {str(i): name for i, name in enumerate(names)}} if names else {}
    return SimpleNamespace(config=known, name="model")


def test_folders_are_classes_by_name_by_number_or_in_their_order():
    assert numbers_of(classes("dog", "Cat", "bird"), ["bird", "cat"]) == {"bird": 2, "cat": 1}
    assert numbers_of(classes("dog", "cat", "bird"), ["2", "0"]) == {"2": 2, "0": 0}
    assert numbers_of(classes("dog", "cat"), ["a", "b"]) == {"a": 0, "b": 1}
    assert numbers_of(classes(), ["label_1", "label_0"]) == {"label_1": 1, "label_0": 0}
    for names in (["2", "3"], ["a", "b", "c"], ["a"]):
        with pytest.raises(GrouperError, match="name the folders as the model names its classes"):
            numbers_of(classes("dog", "cat") if names != ["2", "3"] else classes("x", "y", "z"), names)


def test_pictures_are_those_in_folders_of_classes(tmp_path):
    for name in ("b/2.PNG", "a/9.jpeg", "a/1.webp", "a/notes.txt", "3.png", "a/deep/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(p.relative_to(tmp_path)) for p in picture_files(tmp_path)]
    assert found == ["a/1.webp", "a/9.jpeg", "b/2.PNG"]
    for wrong in (tmp_path / "none", tmp_path / "a" / "deep"):
        with pytest.raises(GrouperError, match=r"expected FOLDER/CLASS/PICTURE\.png"):
            picture_files(wrong)


def test_samples_are_from_minus_one_to_one_both_channels_as_one(tmp_path):
    wavfile.write(tmp_path / "s.wav", 8000, np.array([[-32768, 0], [16384, 16384]], np.int16))
    assert samples_of(tmp_path, "s.wav", 8000).tolist() == [-0.5, 0.5]
    wavfile.write(tmp_path / "u.wav", 8000, np.array([0, 128, 192], np.uint8))
    assert samples_of(tmp_path, "u.wav", 8000).tolist() == [-1.0, 0.0, 0.5]
    wavfile.write(tmp_path / "f.wav", 8000, np.array([0.25, -0.5], np.float32))
    assert samples_of(tmp_path, "f.wav", 8000).tolist() == [0.25, -0.5]
    wave = np.sin(np.arange(8000) / 8000 * 2 * np.pi * 100).astype(np.float32)
    wavfile.write(tmp_path / "w.wav", 8000, wave)
    found = samples_of(tmp_path, "w.wav", 16000)
    assert found.shape == (16000,) and found.dtype == np.float32
    again = np.sin(np.arange(16000) / 16000 * 2 * np.pi * 100)
    assert np.abs(found - again)[200:-200].max() < 0.01, "a tone stays as high at another rate"


def test_pairs_of_lines_and_of_rows(tmp_path):
    (tmp_path / "p.txt").write_text("a b\tc\n\nd\te f\n")
    assert TextSource(str(tmp_path / "p.txt")).pairs() == [("a b", "c"), ("d", "e f")]
    rows = [{"source": "x", "target": "y", "more": 1}, {"source": "u", "target": "v"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert TextSource(str(tmp_path / "p.jsonl")).pairs() == [("x", "y"), ("u", "v")]
    for content in ("a\tb\tc\n", "a\n"):
        (tmp_path / "q.txt").write_text("a\tb\n" + content)
        with pytest.raises(GrouperError, match=r"line 2 of .*q\.txt is no pair"):
            TextSource(str(tmp_path / "q.txt")).pairs()
    for row in ({"source": "x"}, {"source": "x", "target": 3}):
        (tmp_path / "q.jsonl").write_text(json.dumps(row))
        with pytest.raises(GrouperError, match=r"pair"):
            TextSource(str(tmp_path / "q.jsonl")).pairs()


def test_rows_of_text_and_of_chats(tmp_path):
    chat = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    chats = [{"messages": [{"role": "user", "content": "a"}]}, {"messages": chat}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, chats)))
    source = TextSource(str(path))
    assert source.chats() == [row["messages"] for row in chats]
    write = lambda messages, tokenize: f"{len(messages)} messages"  # noqa: E731
    tokenizer = SimpleNamespace(chat_template="there is one", apply_chat_template=write)

    def texts(source: TextSource) -> list[str]:
        return [text for text, _ in source.documents(lambda: tokenizer).pieces(0, 10**6)]

    assert texts(source) == ["1 messages", "2 messages"]
    path.write_text("\n".join(map(json.dumps, [*chats, {"text": "words"}])))
    assert source.chats() is None and texts(source)[2] == "words"
    (tmp_path / "plain.txt").write_text("words\nand more")
    assert texts(TextSource(str(tmp_path / "plain.txt"))) == ["words\nand more"]
    path.write_text('{"words": 1}')
    with pytest.raises(GrouperError, match=r"line 1 of .*rows\.jsonl has neither"):
        texts(source)


def test_several_texts_need_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = named_sources(["wiki=a.txt", "code=b=c.txt"], None, "evaluation")
    assert {n: (s.text, s.purpose) for n, s in found.items()} == {
        "wiki": ("a.txt", "evaluation"), "code": ("b=c.txt", "evaluation"),
    }  # fmt: skip
    assert named_sources(["a.txt"], None, "calibration") == TextSource("a.txt")
    assert named_sources([], None, "evaluation", "folder") == TextSource(purpose="evaluation", images="folder")
    (tmp_path / "x=y").touch()
    assert named_sources(["x=y"], None, "calibration") == TextSource("x=y")
    for texts, dataset in ((["a=1", "b"], None), (["a=1", "a=2"], None), (["a=1", "b=2"], "name")):
        with pytest.raises(GrouperError, match="several texts need a name each"):
            named_sources(texts, dataset, "calibration")


def test_positions_that_a_model_has():
    def known(model_type: str, position: str, context: int) -> int:
        return positions(SimpleNamespace(family=FAMILIES[model_type], position=position, context=context))

    assert known("bert", "learned", 512) == 512 and known("roberta", "learned", 514) == 512
    assert known("t5", "relative", 512) == 0 and known("bert", "learned", 0) == 0 == known("roberta", "learned", 0)
