"""run.json: what may differ, and which model it opens."""

import json
from dataclasses import replace

import pytest

from grouper import Checkpoint, GrouperError
from search import SearchOptions
from search.runs.settings import RunSettings


def test_what_may_differ_where_a_run_goes_on():
    settings = RunSettings(SearchOptions(), "here/model", None, "f", True, "t")
    free = {
        "timings": {"a": 1.0},
        "versions": {"torch": "9"},
        "jobs": 7,
        "device": "cuda",
        "command": "x",
        "model": "y",
    }
    assert settings.changed(replace(settings, **free)) == []
    for name, value in (("fingerprint", "g"), ("text_digest", "u"), ("revision", "v2")):
        assert settings.changed(replace(settings, **{name: value})) == [name]
    other = replace(settings, options=SearchOptions(seed=1, kv_dtype="int8"))
    assert settings.changed(other) == ["kv_dtype", "seed"]
    assert RunSettings.from_json(other.to_json()) == other
    older = {k: v for k, v in json.loads(other.to_json()).items() if k not in ("blocks", "images", "jobs")}
    assert RunSettings.from_json(json.dumps(older)) == other, "what an older one did not know gets its default"


def test_a_model_whose_files_changed_is_not_the_one_that_was_searched(reader, tmp_path):
    checkpoint = Checkpoint.open(reader)
    settings = RunSettings.of(checkpoint, SearchOptions(), revision=None)
    assert settings.open_checkpoint().fingerprint == checkpoint.fingerprint == settings.fingerprint
    with pytest.raises(GrouperError, match="not the model that was searched"):
        replace(settings, fingerprint="f").open_checkpoint()


def test_a_run_opens_the_revision_that_was_searched(reader, monkeypatch):
    asked = []
    monkeypatch.setattr(Checkpoint, "open", lambda model, revision=None: asked.append((model, revision)) or opened)
    opened = Checkpoint.__new__(Checkpoint)
    opened.__dict__["fingerprint"] = "f"
    RunSettings(SearchOptions(), "some/model", "v2", "f").open_checkpoint(local=False)
    assert asked == [("some/model", "v2")]
