"""Where originals of exports are: found again by their fingerprint, from anywhere, and never a wrong one."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_models import edit_weights

from grouper import Checkpoint, GrouperError, HeadLayout, export
from grouper.originals import remember, remembered
from grouper.own_folder import home
from grouper.uptraining.exported import ExportedModel

PAIRS = HeadLayout.from_labels([[0, 0, 1, 1, 2, 2, 3, 3]] * 3, 8, 16)


@pytest.fixture
def place(models, tmp_path, monkeypatch):
    """A model of its own in a folder, an export of it in another one, and nothing known but that."""
    monkeypatch.setenv("GROUPER_HOME", str(tmp_path / "home"))
    shutil.copytree(models("llama"), tmp_path / "models" / "original")
    export(tmp_path / "models" / "original", PAIRS, tmp_path / "out" / "exported")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def facts_of(folder: Path, **changes) -> None:
    """Change grouper.json; None removes."""
    facts = json.loads((folder / "grouper.json").read_text()) | changes
    (folder / "grouper.json").write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))


def found(place: Path) -> Path:
    return Path(ExportedModel.open(place / "out" / "exported").original.folder)


def test_an_export_tells_a_name_and_leads_to_its_original(place):
    facts = (place / "out" / "exported" / "grouper.json").read_text()
    assert str(place) not in facts and json.loads(facts)["base_model"] == "original"
    assert found(place) == place / "models" / "original"
    (record,) = (place / "home").rglob("*.json")
    assert record.stem == json.loads(facts)["base_fingerprint"] == Checkpoint.open(found(place)).fingerprint


def test_a_wrong_model_is_never_taken(place):
    """One that only has the name, here, beside the export, or at the place that is remembered."""
    other = edit_weights(place / "models" / "original", place / "other", lambda t: t["lm_head.weight"].mul_(2))
    for namesake in (place / "elsewhere" / "original", place / "out" / "original"):
        shutil.copytree(other, namesake)
    assert found(place) == place / "models" / "original"
    right = place / "right"
    shutil.move(place / "models" / "original", right)
    shutil.copytree(other, place / "models" / "original")
    with pytest.raises(GrouperError, match="models/original holds another model: say `base=FOLDER`"):
        found(place)
    assert ExportedModel.open(place / "out" / "exported", str(right)).original.folder == right
    shutil.rmtree(place / "out" / "original")
    shutil.copytree(right, place / "out" / "original")
    assert found(place) == place / "out" / "original", "the right one, beside it"


def test_exports_of_before_are_looked_for_by_name(place):
    facts_of(place / "out" / "exported", base_fingerprint=None)
    with pytest.raises(GrouperError, match=r"original, which .* is neither here nor beside it: say `base=FOLDER`"):
        found(place)
    shutil.copytree(place / "models" / "original", place / "elsewhere" / "original")
    assert found(place) == Path("original")


def test_a_model_that_is_called_as_the_one_in_the_box_is_not_taken_for_it(place):
    shutil.copytree(place / "models" / "original", place / "models" / "demo")
    facts_of(place / "out" / "exported", base_model="demo")
    assert found(place) == place / "models" / "original"


@pytest.mark.parametrize("fingerprint", ["../../secret", "", None, 7, "f" * 63 + "/", "F" * 64])
def test_what_is_no_fingerprint_leads_nowhere(tmp_path, monkeypatch, fingerprint):
    """It comes from a folder that may have been downloaded."""
    monkeypatch.setenv("GROUPER_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "originals").mkdir(parents=True)
    (tmp_path / "secret.json").write_text(json.dumps({"place": str(tmp_path)}))
    assert remembered(fingerprint) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"place": 3}', "{"])
def test_a_damaged_record_is_no_record(tmp_path, monkeypatch, content):
    monkeypatch.setenv("GROUPER_HOME", str(tmp_path))
    (tmp_path / "originals").mkdir()
    (tmp_path / "originals" / f"{'a' * 64}.json").write_text(content)
    assert remembered("a" * 64) is None


def test_where_records_are(models, tmp_path, monkeypatch):
    monkeypatch.delenv("GROUPER_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert home() == tmp_path / "me" / ".cache" / "grouper"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert home() == tmp_path / "cache" / "grouper"
    original = Checkpoint.open(models("llama"))
    remember(original)
    assert remembered(original.fingerprint) == models("llama")
    monkeypatch.setenv("GROUPER_HOME", "~/here")
    assert home() == tmp_path / "me" / "here" and remembered(original.fingerprint) is None


def test_a_place_that_cannot_be_kept_is_no_error(models, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GROUPER_HOME", str(tmp_path / "file"))
    original = Checkpoint.open(models("llama"))
    remember(original)
    assert remembered(original.fingerprint) is None and (tmp_path / "file").read_text() == ""
    monkeypatch.setenv("GROUPER_HOME", str(tmp_path / "home"))
    remember(Checkpoint.open("demo"))
    assert not (tmp_path / "home").exists(), "its name leads to it"
