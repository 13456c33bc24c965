"""The command line as people use it, each command in a process of its own."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from commands import grouper
from safetensors.torch import load_file


def test_search_evaluate_export(models, tmp_path):
    (tmp_path / "options.yaml").write_text("generations: 3\npopulation: 16\nmethod: [qcqa-ec, random]\nseed: 4\n")
    run = tmp_path / "run"
    done = grouper("search", "demo", "-o", run, "--config", tmp_path / "options.yaml", "--seed", 7)
    assert done.returncode == 0 and done.stdout.strip() == str(run / "pareto.csv") and "on the front" in done.stderr
    settings = json.loads((run / "run.json").read_text())
    assert (settings["generations"], settings["method"], settings["seed"]) == (3, ["qcqa-ec", "random"], 7), (
        "what is typed wins"
    )
    done = grouper("evaluate", run, "--text", "demo", "--layouts", "0", "--limit", 2, "--window", 64, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)[0]["layout"] is not None
    done = grouper("export", run, "-o", tmp_path / "out", "--kv-ratio", "1/4")
    assert done.returncode == 0 and "self-test" in done.stdout and "the lowest error" in done.stderr
    assert json.loads((tmp_path / "out" / "grouper.json").read_text())["export"].startswith("grouper export")


def test_parameters_of_entries_and_shares_as_people_write_them(models, tmp_path):
    run = tmp_path / "run"
    small = ("--generations", 3, "--population", 16)
    walk = ("--method", "asymgqa", "--fitness", "weight", "--set", "asymgqa.walks=3", "--set", "asymgqa.nearest=2")
    done = grouper("search", models("llama"), "-o", run, *small, *walk)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "run.json").read_text())["set"] == ["asymgqa.walks=3", "asymgqa.nearest=2"]
    again = grouper("search", models("llama"), "-o", run, *small, *walk[:-1], "asymgqa.nearest=3")
    assert again.returncode == 1 and "a run with another set" in again.stderr
    wanted = ("--kv-ratio", "50%", "--deploy", "padded", "--no-refine")
    for padding, code in (("900%", 0), ("ten", 1)):
        done = grouper("export", run, "-o", tmp_path / padding, *wanted, "--max-padding", padding)
        assert done.returncode == code, done.stderr
    assert "--max-padding 'ten'" in done.stderr and done.stderr.count("\n") == 1


def test_inspect_says_what_fewer_kv_heads_save(models):
    model = models("qwen2", heads=8, kv_heads=8)
    wanted = ("--context", 1000, "--batch", 3, "--card", "100MB", "--kv-dtype", "float16", "--json")
    found = json.loads(grouper("inspect", model, *wanted).stdout)
    layers, head_dim = found["layers"], found["head_dim"]
    weights = sum(t.nbytes for t in load_file(model / "model.safetensors").values())
    one = 2 * 2 * 8 * head_dim * layers * 1000  # K and V, two bytes a number
    savings = {s["kv_heads"]: s for s in found["savings"]}
    assert {n: s["kv_bytes"] for n, s in savings.items()} == {n: 3 * one * n // 8 for n in range(8, 0, -1)}
    fits = [savings[n]["largest_batch"] for n in (8, 4)]
    assert fits == [(90_000_000 - weights) // one, (90_000_000 - weights) // (one // 2)]
    assert [savings[n]["deploy"] for n in (8, 4, 3, 1)] == ["", "stock", "padded", "stock"]
    assert savings[4]["engines"][:2] == ["transformers", "vLLM"] and savings[8]["engines"] == []


def test_inspect_shows_every_count_that_a_run_could_take(models):
    """Three KV heads have no half."""
    table = grouper("inspect", models("llama", heads=6, kv_heads=3, hidden_size=96), "--card", "1GB").stdout
    rows = [line.split() for line in table.splitlines() if "GiB" in line and line.split()[0].isdigit()]
    assert [(row[0], row[1]) for row in rows] == [("3", "100.0%"), ("2", "66.7%"), ("1", "33.3%")]
    assert (rows[1][-1], rows[2][-1]) == ("padded", "stock") and "largest batch on 1 GB" in table
    assert "\npadded runs in transformers, vLLM" in table and "\nstock runs in transformers, vLLM" in table
    table = grouper("inspect", models("gpt2", heads=4)).stdout
    assert "\nragged runs in transformers with trust_remote_code" in table and "stock runs" not in table


def test_inspect(models):
    done = grouper("inspect", models("qwen2", heads=8, kv_heads=8), "--context", 1000, "--json")
    found = json.loads(done.stdout)
    assert (
        found["kv_bytes_per_token"] == 2 * 3 * 8 * 16 * 2
        and found["kv_bytes_at_context"] == 1000 * found["kv_bytes_per_token"]
    )
    assert (
        found["biases"]
        and found["deploy"] == ["stock", "padded", "ragged"]
        and found["uniform_kv_heads"] == list(range(1, 8))
    )
    assert "8 query heads over 8 KV heads" in grouper("inspect", models("qwen2", heads=8, kv_heads=8)).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "./nowhere"], "no folder ./nowhere"),
        (["search", "demo", "-o", "{tmp}/run", "--method", "luck"], "unknown method 'luck'"),
        (["evaluate", "{tmp}", "--text", "demo"], "holds no run"),
        (["evaluate", "demo", "--text", "demo", "--refine"], "demo is a model, and --refine is for runs"),
        (["report", "{tmp}"], "holds no run"),
        (["search", "demo", "-o", "{tmp}/run", "--config", "{tmp}/bad.yaml"], "does not know"),
        (["search", "demo", "-o", "{tmp}/run", "--config", "{tmp}/none.yaml"], "cannot read"),
    ],
)
def test_failures_are_one_line_and_exit_1(tmp_path, arguments, message):
    (tmp_path / "bad.yaml").write_text("gravity: 9.81\n")
    before = sorted(tmp_path.iterdir())
    done = grouper(*(str(a).format(tmp=tmp_path) for a in arguments))
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


def test_report_and_its_pictures(models, tmp_path):
    run = tmp_path / "run"
    small = ("--generations", 3, "--population", 16, "--fitness", "weight")
    assert grouper("search", models("llama"), "-o", run, *small).returncode == 0
    for _ in range(2):  # an earlier report is replaced
        done = grouper("report", run)
        assert (done.returncode, done.stdout.strip()) == (0, str(run / "report.html")), done.stderr
    (tmp_path / "mine.html").write_text("<html>mine</html>")
    refused = {
        ("-o", tmp_path / "mine.html"): "not written by Grouper",
        ("-o", tmp_path / "no" / "page.html"): "a folder that is there",
        ("--layout", 0): "--format, too",
        ("--format", "png", "--layout", 999): "no layout 999",
        ("--format", "gif"): "unknown picture format 'gif'",
        ("--format", "png", "--beside", run): "--beside is for the page",
        ("--beside", tmp_path): "holds no run",
        ("--beside", run): "is the run itself",
        ("--format", "png", "-o", tmp_path / "mine.html"): "is a file",
    }
    for arguments, message in refused.items():
        done = grouper("report", run, *arguments)
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert (tmp_path / "mine.html").read_text() == "<html>mine</html>" and not (tmp_path / "no").exists()
    assert not (run / "pictures").exists()
    done = grouper("report", run, "--format", "svg", "--no-similar")
    assert done.returncode == 0 and str(run / "pictures" / "front.svg") in done.stdout.splitlines()


def test_pages_and_pictures_stay_out_of_models_and_replace_nothing_of_others(models, tmp_path):
    model, run, mine = shutil.copytree(models("llama"), tmp_path / "model"), tmp_path / "run", tmp_path / "pictures"
    small = ("--generations", 3, "--population", 16, "--fitness", "weight")
    assert grouper("search", model, "-o", run, *small).returncode == 0
    shutil.copytree(run, tmp_path / "run2")
    mine.mkdir()
    for name in ("heads.svg", "both.svg", "page.html"):
        (mine / name).write_text("mine")
    before = {p: p.read_bytes() for folder in (model, mine) for p in folder.rglob("*")}
    refused = {
        ("report", run, "-o", model / "page.html"): "own folder",
        ("report", run, "-o", model / "config.json", "--overwrite"): "own folder",
        ("report", run, "-o", mine / "page.html", "--overwrite"): "not written by Grouper",
        ("report", run, "--format", "png", "-o", model): "own folder",
        ("report", run, "--format", "png", "-o", model / "pictures"): "own folder",
        ("report", run, "--format", "png,svg", "-o", mine): "heads.svg exists and was not written",
        ("compare", run, tmp_path / "run2", "-o", model / "both.svg"): "own folder",
        ("compare", run, tmp_path / "run2", "-o", mine / "both.svg"): "not written by Grouper",
        ("compare", run, tmp_path / "run2", "-o", mine / "both.gif"): "ends in .svg",
        (
            "search",
            model,
            "-o",
            tmp_path / "other",
            "--text",
            "demo",
            "--keep-calibration",
            model / "kept",
        ): "own folder",
    }
    for arguments, message in refused.items():
        done = grouper(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1) and message in done.stderr, done.stderr
    assert {p: p.read_bytes() for folder in (model, mine) for p in folder.rglob("*")} == before
    (mine / "heads.svg").unlink(), (mine / "both.svg").unlink()
    for _ in range(2):  # ours are replaced
        assert grouper("report", run, "--format", "png,svg,pdf", "-o", mine, "--no-similar").returncode == 0
        assert grouper("compare", run, tmp_path / "run2", "-o", mine / "both.svg").returncode == 0
    assert not list(tmp_path.rglob(".*")), "nothing is left beside them"


def test_commands_guide(models, tmp_path):
    """Options in groups; the next command with its values; nothing but results when asked to be quiet."""
    helped = grouper("search", "--help").stdout
    places = [helped.index(f"─ {panel} ─") for panel in ("Options", "Text", "Search", "Machine", "Output")]
    assert len(set(places)) == 5 and helped.index("--output") < min(places[1:]) < helped.index("--population")
    run = tmp_path / "a run"
    options = ["--fitness", "weight", "--generations", 2, "--population", 8]
    done = grouper("search", models("llama"), "-o", run, *options)
    assert f"next: grouper evaluate '{run}' --text other.txt" in done.stderr and "without text" not in done.stderr
    quiet = grouper("search", models("llama"), "-o", tmp_path / "run", *options, "--quiet")
    assert quiet.stderr == "" and quiet.stdout.strip() == str(tmp_path / "run" / "pareto.csv")
    guessed = grouper("search", models("llama"), "-o", tmp_path / "other", *options[2:])
    assert "searched without text" in guessed.stderr
    exported = grouper("export", run, "-o", tmp_path / "out", "--kv-ratio", "1/2")
    first, then, last = exported.stderr.splitlines()[-3:]
    assert first == f"next: grouper evaluate {tmp_path / 'out'} --text other.txt", "to measure comes first"
    assert then == f"next: grouper uptrain {tmp_path / 'out'} -o {tmp_path / 'out'}-healed --text training.txt"
    assert last == "not refined: add --text FILE (the run was searched without)"
    table = grouper("layouts", run, "--deploy", "stock", "--all")
    assert table.returncode == 0 and "qcqa-ec" in table.stdout and "KV heads" in table.stdout
    assert json.loads(grouper("layouts", run, "--best-under", "1/2", "--json").stdout)[0]["kv_ratio"] <= 0.5
    both = grouper("compare", run, tmp_path / "run", "-o", tmp_path / "both.svg")
    assert both.returncode == 0 and both.stdout.count("hypervolume") == 1 and (tmp_path / "both.svg").is_file()
    assert "did you mean qcqa-ac?" in grouper("search", "demo", "-o", tmp_path / "x", "--method", "qcqa-acc").stderr


def test_usage_errors_exit_2():
    assert grouper("search").returncode == 2 and grouper("fly").returncode == 2 and grouper("--help").returncode == 0
    for arguments, code in ((["fly"], 2), (["--help"], 0)):  # as `python -m cli`, from the start of Python
        command = [sys.executable, "-X", "importtime", "-m", "cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
        assert done.returncode == code and "typer" in imported
        assert not {"torch", "pandas", "scipy", "matplotlib"} & imported, "they take seconds, and help needs none"


def test_the_demo_does_the_whole_job_and_can_be_run_again(tmp_path):
    done = grouper("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "grouper-demo"
    assert {p.name for p in made.iterdir()} == {"README.txt", "run", "regrouped"}
    assert (made / "run" / "pareto.svg").read_text().startswith("<?xml") and (
        made / "regrouped" / "model.safetensors"
    ).is_file()
    over = float(done.stdout.split("refined at half the KV cache: ")[1].split()[0])
    rows = pd.read_csv(made / "run" / "pareto.csv").dropna(subset="nll")
    original = rows.loc[rows["method"] == "original", "nll"].iloc[0]
    neighbours = rows[(rows["method"] == "neighbour") & (rows["kv_ratio"] == 0.5)]["nll"].iloc[0]
    assert 0 < over < (neighbours - original) / 8, "refined spectral against averaged neighbours, at half the cache"
    (made / "README.txt").unlink()
    again = grouper("demo", cwd=tmp_path)
    assert again.returncode == 1 and "not an earlier demo's" in again.stderr and (made / "run").is_dir()
