"""Exports name no code but our own."""

import json
import shutil

import pytest
from evil_models import add_code, answers  # noqa: F401  a fixture

from grouper import Architecture, Checkpoint, GrouperError, HeadLayout, export
from grouper.export.hf.code_names import copy_without_code, without_code

LAYOUTS = {"stock": [0, 0, 1, 1, 2, 2, 3, 3], "padded": [0, 0, 0, 1, 1, 2, 2, 2], "ragged": None}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_an_export_runs_our_file_alone(reader, tmp_path, answers, kind):  # noqa: F811
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, out = shutil.copytree(reader, tmp_path / "model"), tmp_path / "out"
    mark = add_code(folder, config={"vision_config": {"auto_map": {"AutoModel": "evil.Model"}}})
    a = Architecture.of(Checkpoint.open(folder).config)
    even = [h // 2 for h in range(a.query_heads)]
    labels = [LAYOUTS[kind] or even] * (a.layers - 1) + [LAYOUTS[kind] or [h // 4 for h in range(a.query_heads)]]
    layout = HeadLayout.from_labels(labels, a.query_heads, a.head_dim)
    assert export(folder, layout, out).export_class == kind
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert ("modeling_ragged" in type(model).__module__) == (kind == "ragged")
    AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    assert answers.tell() == 0 and not mark.exists()
    for file in out.rglob("*.json"):
        assert not any(text in file.read_text() for text in ('"evil', '"custom_', '"trust_remote_code"')), file
    assert [f.name for f in out.rglob("*.py")] == (["modeling_ragged.py"] if kind == "ragged" else [])


def test_all_else_stays_as_it_was(tmp_path):
    """Order of keys and vocabularies included; files that name no code are copied byte by byte."""
    given = {"b": [{"auto_map": {}, "z": 1, "a": [None]}], "auto_map": {"AutoTokenizer": "x.Y"}, "a": "auto_map"}
    assert json.dumps(without_code(given)) == '{"b": [{"z": 1, "a": [null]}], "a": "auto_map"}'
    for name, text in (
        ("tokenizer_config.json", '{"z":1,   "a": 2}'),
        ("vocab.json", '{"auto_map": 7}'),
        ("generation_config.json", "no JSON"),
    ):
        (tmp_path / name).write_text(text)
        copy_without_code(tmp_path / name, tmp_path / "copy")
        assert (tmp_path / "copy").read_text() == text
    (tmp_path / "tokenizer_config.json").write_text('{"z": "\\ud800", "auto_map": [], "a": 2}')
    copy_without_code(tmp_path / "tokenizer_config.json", tmp_path / "copy")
    assert list(json.loads((tmp_path / "copy").read_text()).items()) == [("z", "\ud800"), ("a", 2)]


@pytest.mark.parametrize("depth", [101, 700, 985, 5000])
def test_a_configuration_that_others_may_read_and_we_cannot_is_refused(tmp_path, depth):
    """Nested so deep that the stack's own depth decides who reads it."""
    path = tmp_path / "tokenizer_config.json"
    path.write_text('{"auto_map": {"AutoTokenizer": "x.Y"}, "a": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(GrouperError, match=r"tokenizer_config\.json has .* within one another"):
        copy_without_code(path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("modules", "copied"),
    [
        ([{"type": "sentence_transformers.models.Pooling"}], True),
        ([{"type": "sentence_transformers.models.Pooling"}, {"type": "evil.Pooling"}], False),
        ([{"path": "1_Pooling"}], False),
        ({"type": "sentence_transformers.models.Pooling"}, False),
        (["sentence_transformers.models.Pooling"], False),
    ],
)
def test_modules_of_sentence_transformers_are_its_own(tmp_path, modules, copied):
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    copy_without_code(tmp_path / "modules.json", tmp_path / "copy")
    assert (tmp_path / "copy").exists() == copied
