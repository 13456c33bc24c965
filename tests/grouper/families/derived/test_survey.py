"""All model types: a row for each, whatever its class does."""

import json
import sys

import pytest
from commands import grouper

from grouper.families.derived import survey
from grouper.families.derived.survey import Surveyed, markdown, survey_of, types_with_attention

NAMED = {  # that people asked for
    "seed_oss", "ministral3", "glm4", "phimoe", "dots1", "apertus", "arcee", "exaone4", "nemotron", "cohere2",
    "ernie4_5", "hunyuan_v1_dense", "helium", "esm", "siglip_vision_model", "clip_vision_model", "clip_text_model",
    "dinov2", "wav2vec2", "modernbert", "xlm-roberta", "m2m_100", "pegasus",
}  # fmt: skip


def test_rows_of_types_that_pass_and_of_others(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUPER_HOME", str(tmp_path))
    told = []
    rows = survey_of(
        ["mamba", "arcee", "bitnet", "gpt2"], progress=lambda done, total, note: told.append((done, total))
    )
    assert [(row.model_type, row.supported, row.entry) for row in rows] == [
        ("arcee", True, False), ("bitnet", False, False), ("gpt2", True, True),
    ]  # fmt: skip
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)] and rows[0].attention == "ArceeAttention" and rows[0].seconds > 0
    assert rows[0].classes == ["stock", "padded", "ragged"] and "a gate or a norm" in rows[1].reason
    assert len(list((tmp_path / "proofs").iterdir())) == 1


def test_a_class_that_hangs_and_one_that_ends_its_process(monkeypatch):
    (row,) = survey_of(["arcee"], limit=0.01)
    assert not row.supported and row.reason == "its proof took longer than 0 seconds"
    monkeypatch.setattr(sys, "executable", "false")
    rows = survey_of(["arcee", "bitnet"])
    assert [row.reason for row in rows] == ["its class ended the process"] * 2


def test_types_are_those_that_have_a_model():
    found = types_with_attention()
    assert {"llama", "bert", "t5"} <= set(found) and found == sorted(found)


def test_the_table_counts_types_and_attention_classes():
    rows = [
        Surveyed("a", "XAttention", "decoder", True, False, 3.0, "", ["stock", "ragged"]),
        Surveyed("b", "XAttention", "decoder", True, True, 2.0, "", ["ragged"]),
        Surveyed("c", "YAttention", "decoder", reason="it has | within"),
        Surveyed("d", "YAttention", "decoder", reason="it has | within"),
    ]
    text = markdown(rows)
    assert text.startswith("2 model types of 1 attention classes are supported.")
    assert "| `a` | XAttention | proof | stock, ragged |\n| `b` | XAttention | entry | ragged |" in text
    assert "| `c`, `d` | it has \\| within |" in text


def test_the_command_asks_for_families_with_all():
    done = grouper("inspect", "--all")
    assert done.returncode == 2 and "--all goes with --families" in done.stderr


def test_the_command_over_few_types(monkeypatch, capsys):
    from search.commands.inspect import _survey

    monkeypatch.setattr(survey, "survey_of", lambda progress: [Surveyed("a", "XAttention", supported=True)])
    _survey(json=False)
    assert "| `a` | XAttention | proof |  |" in capsys.readouterr().out
    _survey(json=True)
    assert json.loads(capsys.readouterr().out)[0]["model_type"] == "a"


@pytest.mark.every
def test_every_type_of_the_installed_transformers(tmp_path, monkeypatch):
    """Each is supported, or refused with a reason; those that people asked for are supported where transformers has
    them."""
    monkeypatch.setenv("GROUPER_HOME", str(tmp_path))
    rows = survey_of()
    able = {row.model_type for row in rows if row.supported}
    assert all(row.supported or row.reason for row in rows)
    assert NAMED & {row.model_type for row in rows} <= able
    assert {row.model_type for row in rows if row.entry and not row.supported} == set()
    assert len(able) >= 90 and len({row.attention for row in rows if row.supported}) >= 45
