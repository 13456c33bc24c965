"""Text as Python gives it."""

import itertools
import json
from pathlib import Path

import pytest

from grouper import GrouperError
from grouper.calibration import given
from grouper.calibration.given import named_text

CHAT = [{"role": "user", "content": "hello"}]


def rows(text, tmp_path: Path) -> list[dict]:
    name = named_text(text, tmp_path / "text.jsonl")
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def test_a_path_or_a_name_stays_as_it_is(tmp_path):
    for name in ("demo", "wikitext", "nowhere.txt", Path("x") / "y.txt"):
        assert named_text(name, tmp_path / "text.jsonl") == str(name)
    assert not [*tmp_path.iterdir()]


def test_documents_pairs_and_rows_are_written(tmp_path):
    assert rows(["a\nb", "c"], tmp_path) == [{"text": "a\nb"}, {"text": "c"}]
    assert rows((t for t in "xy"), tmp_path) == [{"text": "x"}, {"text": "y"}]
    assert rows([("a", "b")], tmp_path) == [{"source": "a", "target": "b"}]
    assert rows([{"text": "a", "id": object()}], tmp_path) == [{"text": "a"}]
    assert rows([{"messages": CHAT, "id": 1}], tmp_path) == [{"messages": CHAT}]
    assert rows([{"source": "a", "target": "b", "id": 1}], tmp_path) == [{"source": "a", "target": "b"}]


def test_datasets_of_the_library_are_rows_and_columns(tmp_path):
    datasets = pytest.importorskip("datasets", reason="an optional extra")
    texts = datasets.Dataset.from_dict({"text": ["a", "b"], "id": [1, 2]})
    expected = [{"text": "a"}, {"text": "b"}]
    assert rows(texts, tmp_path) == rows(texts["text"], tmp_path) == expected
    assert rows(texts.to_iterable_dataset(), tmp_path) == expected
    with pytest.raises(GrouperError, match="text is a DatasetDict: give one of its splits"):
        rows(datasets.DatasetDict({"train": texts}), tmp_path)


def test_text_without_an_end_is_read_as_far_as_is_of_use(tmp_path, monkeypatch):
    monkeypatch.setattr(given, "STREAMED", 100)
    assert len(rows(({"text": "abcdefgh"} for _ in itertools.count()), tmp_path)) == 5
    assert len(rows([{"text": "abcdefgh"}] * 20, tmp_path)) == 20


@pytest.mark.parametrize(
    "text", [[], 7, [7], [("a", "b", "c")], [{"title": "a"}], [{"text": None}], [{"source": "a"}], [["a"]], iter(())]
)
def test_what_is_no_text_is_said(text, tmp_path):
    with pytest.raises(GrouperError, match="neither a file nor documents"):
        rows(text, tmp_path)


def test_rows_are_of_one_kind(tmp_path):
    with pytest.raises(GrouperError, match="rows with `text` and others without"):
        rows(["a", ("b", "c")], tmp_path)


@pytest.mark.parametrize("text", ["word " * 1000, "two\nlines", "x/" * 3000])
def test_a_document_in_the_place_of_a_name_is_answered_briefly(text, tmp_path):
    with pytest.raises(GrouperError) as error:
        named_text(text, tmp_path / "text.jsonl")
    assert f"text is a string of {len(text):,} characters and no file: give a path, or [text]" == str(error.value)


def test_a_long_name_of_a_file_is_a_name(tmp_path):
    long = tmp_path.joinpath(*["d" * 100] * 3)
    long.mkdir(parents=True)
    (long / "a\nb.txt").write_text("x")
    assert named_text(str(long / "a\nb.txt"), tmp_path / "text.jsonl") == str(long / "a\nb.txt")
