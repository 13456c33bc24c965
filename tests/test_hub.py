"""Reading a Hub id for real, in a process of its own, against a server on loopback."""

import json
import os
import subprocess
import sys

import pytest
from hub_server import serve

from grouper import Architecture, Checkpoint


def grouper(hub, home, *arguments, **environment):
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_secret", **environment}
    env.pop("HF_HUB_OFFLINE", None) if "HF_HUB_OFFLINE" not in environment else None
    return subprocess.run([sys.executable, "-m", "cli", *map(str, arguments)], capture_output=True, text=True, env=env, timeout=300)


@pytest.fixture(scope="module")
def hub(models):
    with serve("someone/tiny", models("llama")) as server:
        yield server


def test_scoring_reads_the_byte_ranges_of_attention_and_nothing_else(hub, models, tmp_path):
    hub.sent.clear()
    done = grouper(hub, tmp_path / "home", "search", "someone/tiny", "-o", tmp_path / "run", "--generations", 2)
    assert done.returncode == 0, done.stderr
    local = Checkpoint.open(models("llama"))
    architecture = Architecture.of(local.config)
    wanted = sum(
        info.nbytes for name, info in local.tensors.items()
        if any(f".{m}." in name for m in [*architecture.projections(), architecture.family.norm])
    )  # fmt: skip
    total = sum(info.nbytes for info in local.tensors.values())
    assert wanted <= hub.sent["model.safetensors"] < wanted + 20_000 < total  # and the headers
    again = grouper(hub, tmp_path / "home", "search", models("llama"), "-o", tmp_path / "local", "--generations", 2)
    assert again.returncode == 0
    assert (tmp_path / "run" / "pareto.csv").read_bytes() == (tmp_path / "local" / "pareto.csv").read_bytes()
    assert "Bearer hf_secret" in hub.tokens and "hf_secret" not in (tmp_path / "run" / "run.json").read_text() + done.stderr + done.stdout


def test_export_downloads_and_then_works_offline(hub, tmp_path):
    home = tmp_path / "home"
    assert grouper(hub, home, "search", "someone/tiny", "-o", tmp_path / "run", "--generations", 2).returncode == 0
    done = grouper(hub, home, "export", tmp_path / "run", "-o", tmp_path / "out", "--kv-ratio", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["deploy"] == "stock"
    offline = grouper(hub, home, "inspect", "someone/tiny", "--json", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.returncode == 0 and json.loads(offline.stdout)["kv_heads"] == 8


def test_ids_and_revisions_that_are_not_there(hub, tmp_path):
    for arguments, message in (
        (["inspect", "someone/else"], "no model of that name"),
        (["inspect", "someone/tiny", "--revision", "v9"], "no revision 'v9'"),
        (["inspect", "some one/tiny"], "no model id"),
    ):
        done = grouper(hub, tmp_path, *arguments)
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    dead = grouper(hub, tmp_path, "inspect", "someone/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert dead.returncode == 1 and "cannot reach the Hub" in dead.stderr and dead.stderr.count("\n") == 1
