"""Reading a Hub id for real, in a process of its own, against a server on loopback."""

import json
import os

import commands
import pytest
from hub_server import serve

from grouper import Architecture, Checkpoint
from search import SearchOptions, search


def grouper(hub, home, *arguments, **environment):
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_secret",
        **environment,
    }
    env.pop("HF_HUB_OFFLINE", None) if "HF_HUB_OFFLINE" not in environment else None
    return commands.grouper(*arguments, environment=env)


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
    assert (
        "Bearer hf_secret" in hub.tokens
        and "hf_secret" not in (tmp_path / "run" / "run.json").read_text() + done.stderr + done.stdout
    )


def test_export_downloads_and_then_works_offline(hub, tmp_path):
    home = tmp_path / "home"
    assert grouper(hub, home, "search", "someone/tiny", "-o", tmp_path / "run", "--generations", 2).returncode == 0
    done = grouper(hub, home, "export", tmp_path / "run", "-o", tmp_path / "out", "--kv-ratio", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["deploy"] == "stock"
    offline = grouper(
        hub, home, "inspect", "someone/tiny", "--json", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9"
    )
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


LOADING = """
import sys, torch
from transformers import AutoModelForCausalLM
theirs = AutoModelForCausalLM.from_pretrained("someone/regrouped", trust_remote_code=True, dtype=torch.float32)
ours = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32)
tokens = torch.arange(20)[None]
assert torch.equal(theirs(tokens).logits, ours(tokens).logits)
"""


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushed") / "run"
    search(models("llama"), folder, SearchOptions(generations=2))
    return folder


@pytest.fixture
def empty_hub(tmp_path):
    (tmp_path / "repository").mkdir()
    with serve("someone/regrouped", tmp_path / "repository") as server:
        yield server


def test_an_export_is_pushed_and_loads_from_the_hub(empty_hub, run, tmp_path):
    hub = empty_hub
    export = (
        "export",
        run,
        "-o",
        tmp_path / "out",
        "--kv-bytes-per-token",
        1000,
        "--deploy",
        "ragged",
        "--push-to-hub",
        "someone/regrouped",
    )
    hub.broken = True
    failed = grouper(hub, tmp_path / "home", *export, "--private", "--revision", "main")
    assert failed.returncode == 1 and "is written but not pushed" in failed.stderr and "hf_secret" not in failed.stderr
    sent = len([path for path, _ in hub.requests if path.startswith("/lfs/")])
    hub.broken = False
    again = grouper(hub, tmp_path / "home", *export, "--private", "--revision", "main")
    assert again.returncode == 0 and "written already" in again.stderr and f"pushed to {hub.url}" in again.stdout
    assert len([path for path, _ in hub.requests if path.startswith("/lfs/")]) == sent, (
        "what came over before is not sent again"
    )
    assert ("/api/repos/create", True) in [
        (path, data.get("visibility") == "private" or data.get("private")) for path, data in hub.requests
    ]
    assert hub.commits[0]["summary"] == "Regrouped with Grouper"
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "other"), "HF_HUB_DISABLE_XET": "1"}
    (tmp_path / "loading.py").write_text(LOADING)
    loaded = commands.python(tmp_path / "loading.py", tmp_path / "out", environment=env)
    assert loaded.returncode == 0, loaded.stderr


def test_a_pull_request_and_a_message_of_ones_own(empty_hub, run, tmp_path):
    hub = empty_hub
    done = grouper(
        hub, tmp_path / "home", "export", run, "-o", tmp_path / "out", "--kv-ratio", "1/2", "--json",
        "--push-to-hub", "someone/regrouped", "--create-pr", "--commit-message", "Half the cache",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pushed"].endswith("/discussions/1")
    assert hub.commits[0]["summary"] == "Half the cache" and "create_pr=1" in hub.commits[0]["query"]


@pytest.mark.parametrize(
    ("name", "token", "why"),
    [("nobody", "hf_secret", "USER/NAME"), ("a/b", "wrong", "hf auth login"), ("a/b", "", "HF_TOKEN")],
)
def test_a_push_that_cannot_work_fails_before_the_work(empty_hub, run, tmp_path, name, token, why):
    done = grouper(
        empty_hub,
        tmp_path / "home",
        "export",
        run,
        "-o",
        tmp_path / "out",
        "--kv-ratio",
        "1/2",
        "--push-to-hub",
        name,
        HF_TOKEN=token,
    )
    assert (
        done.returncode == 1
        and why in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
        and not (tmp_path / "out").exists()
    )
