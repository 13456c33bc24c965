"""Proofs that are kept, and files that are not what was written."""

import json

import pytest

from grouper.families.decoders import FAMILIES
from grouper.families.derived import known, remembered
from grouper.families.derived.remembered import Proved, keep, kept, key_of

PROVED = {name: Proved(FAMILIES[name].__class__(**{**vars(FAMILIES[name]), "proved": True}), "XAttention", 1.5)
          for name in ("llama", "phi3", "gpt_neox", "olmo2", "vit", "t5")}  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUPER_HOME", str(tmp_path))
    return tmp_path / "proofs"


@pytest.mark.parametrize("name", PROVED)
def test_a_proof_comes_back_as_it_was(name):
    keep("key", PROVED[name])
    assert kept("key") == PROVED[name] and kept("other") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"half"', "3"),
        lambda text: text.replace('"self_attn.q_proj"', "null"),
        lambda text: text.replace('"proved": true', '"proved": false'),
        lambda text: text.replace('"seconds": 1.5', '"more": 1.5'),
        lambda text: json.dumps({**json.loads(text), "more": 1}),
        lambda text: "[]",
        lambda text: "",
    ],
)
def test_a_damaged_proof_is_none(home, damage):
    keep("key", PROVED["llama"])
    file = home / "key.json"
    file.write_text(damage(file.read_text()))
    assert kept("key") is None


def test_keys_tell_classes_quirks_and_versions_apart(monkeypatch):
    keys = {key_of("llama", {"bias": True}), key_of("llama", {"bias": False}), key_of("llama", {}), key_of("arcee", {})}
    monkeypatch.setattr(remembered, "version", lambda name: "0.1")
    assert len(keys | {key_of("llama", {})}) == 5


def test_a_folder_that_cannot_be_written_is_no_error(home):
    home.write_text("a file")
    keep("key", PROVED["llama"])
    assert kept("key") is None


def test_a_class_is_proved_once_whatever_the_models_size(monkeypatch):
    made = []

    def proved(model_type, full, names):
        made.append(model_type)
        return PROVED["llama"]

    monkeypatch.setattr(known, "_proved", proved)
    monkeypatch.setattr(known, "_KNOWN", {})
    monkeypatch.setattr(known, "_NEW", set())
    config = {"model_type": "arcee", "hidden_size": 64}
    assert known.family_for(config) == PROVED["llama"].family
    assert known.how_proved(config) == "supported (proved just now on a small model of this class)"
    larger = {"model_type": "arcee", "hidden_size": 128}
    assert known.family_for(larger) == PROVED["llama"].family and made == ["arcee"]
    assert known.how_proved(larger) == "supported (proved on a small model of this class)"
    known.family_for({"model_type": "arcee", "attention_bias": True})
    assert made == ["arcee"] * 2, "another quirk"
