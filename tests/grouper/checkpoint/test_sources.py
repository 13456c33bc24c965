"""A Hub that is busy, breaks off or sends the wrong bytes."""

import os
import shutil
import subprocess
import sys

import pytest
from hub_server import serve

from grouper import Checkpoint, GrouperError
from grouper.checkpoint.sources import LocalSource, is_own_file

NAME = "model.layers.1.self_attn.k_proj.weight"
PROGRAM = f"""
from grouper import Checkpoint, GrouperError
from grouper.checkpoint import sources
sources.WAIT = 0.01
checkpoint = Checkpoint.open("someone/tiny")
print("open", flush=True)
input()
try:
    print(checkpoint.tensor("{NAME}").double().sum().item())
except GrouperError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def hub(models):
    with serve("someone/tiny", models("llama")) as server:
        yield server


def read(hub, home, at_first: list[str], then: list[str]) -> str:
    """What comes of a tensor where these answers go wrong: when the model is opened, and when the tensor is read."""
    hub.faults = [*at_first]
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    env.pop("HF_HUB_OFFLINE", None)
    program = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout.readline() == "open\n"
        hub.faults = [*then]
        return process.communicate("\n", timeout=60)[0].strip()


def test_what_passes_is_tried_again_and_the_bytes_are_right(hub, models, tmp_path):
    expected = str(Checkpoint.open(models("llama")).tensor(NAME).double().sum().item())
    assert read(hub, tmp_path, ["503", "drop", "429"], ["short", "whole", "500"]) == expected
    assert hub.faults == [], "every fault was met"


def test_what_does_not_pass_is_said(hub, tmp_path):
    assert "cannot reach the Hub for someone/tiny (HTTP 503)" in read(hub, tmp_path, [], ["503"] * 4)
    assert "sent 4 bytes of model.safetensors, not 8" in read(hub, tmp_path, [], ["short"] * 4)


def test_a_link_to_itself_is_no_file_of_the_model(reader, tmp_path):
    folder = shutil.copytree(reader, tmp_path / "model")
    for name in ("LICENSE", "model.safetensors.index.json"):
        (folder / name).symlink_to(folder / name)
        assert not is_own_file(folder / name, folder)
    with pytest.raises(GrouperError, match=r"index\.json is a link out of the model's folder, or no file"):
        LocalSource(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "LICENSE" not in LocalSource(folder).files()


@pytest.mark.parametrize("name", ["generation_config.json", "merges.txt", "vocab.txt", "tokenizer.model", "x.jinja"])
def test_no_library_is_given_a_huge_file(reader, tmp_path, name):
    folder = shutil.copytree(reader, tmp_path / "model")
    with open(folder / name, "wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(GrouperError, match=rf"{name} has more than 256 MiB"):
        LocalSource(folder)
    (folder / name).rename(folder / "notes.txt")
    assert "notes.txt" in LocalSource(folder).files(), "a text of somebody's"


@pytest.mark.parametrize("name", ["source.spm", "additional_chat_templates/x.jinja"])
def test_a_link_out_of_the_folder_is_refused_where_libraries_look(reader, tmp_path, name):
    folder, secret = shutil.copytree(reader, tmp_path / "model"), tmp_path / "secret"
    secret.write_text("secret")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(GrouperError, match=rf"{name} is a link out of the model's folder"):
        LocalSource(folder)
