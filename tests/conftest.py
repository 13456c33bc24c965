"""Fixtures for all tests: tiny models made once a session, the model in the box, planted groupings."""

import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import transformers
from encoder_samples import SAMPLES as ENCODERS
from encoder_samples import make as make_encoder
from packaging.version import Version
from tiny_models import SIZES, add_tokenizer, edit_weights, make_model

from grouper.calibration.source import DATA
from grouper.families.decoders import FAMILIES

os.environ["GROUPER_HOME"] = tempfile.mkdtemp(prefix="grouper-home-")  # of commands that tests start, too
INSTALLED = transformers.__version__  # tests pretend that another one is
torch.set_num_threads(1)  # workers of pytest-xdist share the cores
LONGEST = {  # they begin first, so that no worker waits for the other one's last test
    "test_the_demo_does_the_whole_job_and_can_be_run_again", "test_two_ranks_write_what_one_writes",
    "test_killed_commands_go_on_to_the_same_files", "test_bad_input_ends_in_one_line_and_harms_nothing",
    "test_an_export_is_pushed_and_loads_from_the_hub", "test_ranks_that_hold_parts_of_the_model_train_what_one_trains",
    "test_two_ranks_of_transformers_give_the_logits_of_one",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.name.partition("[")[0] not in LONGEST)


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Runs of small models lack their picture, which takes longer to draw than they take to search; a file that looks
    at pictures marks its tests with `drawn`. Commands in processes of their own draw."""
    if not request.node.get_closest_marker("drawn"):
        for name in {"search.run", "search.evaluation.layouts"} & sys.modules.keys():
            monkeypatch.setattr(sys.modules[name], "draw", lambda *_: None)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """models("qwen2", heads=8, kv_heads=4): the folder of such a model."""
    made = {}

    def get(family: str = "llama", **options) -> Path:
        key = (family, *sorted(options.items()))
        if key not in made:
            made[key] = make_model(tmp_path_factory.mktemp(family), family, **options)
        return made[key]

    return get


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """encoders("t5"): the folder of a sample of encoder_samples.py. Skips the test where transformers is too old."""
    made = {}

    def get(name: str) -> Path:
        since = FAMILIES[ENCODERS[name][0]].since
        if Version(INSTALLED) < Version(since):
            pytest.skip(f"{name} needs transformers {since} or later, and {INSTALLED} is installed")
        if name not in made:
            made[name] = make_encoder(tmp_path_factory.mktemp(name), *ENCODERS[name])
        return made[name]

    return get


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A short text."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text((DATA / "addresses-1977-2016.txt").read_text()[:60_000])
    return path


@pytest.fixture(scope="session")
def reader(tmp_path_factory) -> Path:
    """A random multi-head model with a tokenizer."""
    return add_tokenizer(make_model(tmp_path_factory.mktemp("reader"), vocab_size=4096))


@pytest.fixture
def planted(models, tmp_path):
    """A model whose K and V heads are copies of one another in shuffled groups of two. Returns (folder, labels per
    layer)."""
    generator = torch.Generator().manual_seed(3)
    labels = [torch.randperm(8, generator=generator) // 2 for _ in range(SIZES["num_hidden_layers"])]

    def copy_heads(tensors):
        for layer, groups in enumerate(labels):
            for kind in ("k", "v"):
                name = f"model.layers.{layer}.self_attn.{kind}_proj.weight"
                heads = tensors[name].view(8, 16, -1)
                tensors[name] = heads[groups].flatten(0, 1).contiguous()  # head h becomes head number groups[h]

    return edit_weights(models("llama"), tmp_path / "planted", copy_heads), [row.tolist() for row in labels]


@pytest.fixture(scope="session")
def prompt() -> torch.Tensor:
    return torch.randint(2, SIZES["vocab_size"], (2, 24), generator=torch.Generator().manual_seed(1))
