"""docs/leaderboard: every file is an entry, and the page is what the command draws."""

import json
import sys

import pytest
from tiny_models import ROOT

from grouper import GrouperError
from grouper.calibration.source import TextSource
from search.evaluation.models import evaluate_model

sys.path.append(str(ROOT / "bench"))
import leaderboard


def entry(**changes) -> dict:
    about = {
        "base_model": "m", "export_class": "stock", "kv_heads": ["2", "1"], "kv_bytes_per_token": [12288, 6144],
        "merge": "spectral+refine", "refined_tokens": 1024, "trained_tokens": 0,
        "texts": {"wiki": {"file": "a.txt", "digest": "ab", "windows": [64, 512]}}, "commands": ["grouper x"],
        "versions": {"torch": "2"}, "device": "CPU",
    }  # fmt: skip
    values = {"nll:wiki": 2.5, "nll_se:wiki": 0.01, "kl:wiki": 0.125, "agreement:wiki": 0.8, "piqa,acc": 0.5,
              "piqa,acc_stderr": 0.1}  # fmt: skip
    original = {"nll:wiki": 2.25, "piqa,acc": 0.75}
    return {"model": "half", "values": values, "original": original, "about": {**about, **changes.pop("about", {})},
            **changes}  # fmt: skip


def drawn(folder, **files) -> list[str]:
    for name, data in files.items():
        (folder / f"{name}.json").write_text(json.dumps(data))
    return leaderboard.table(leaderboard.entries(folder)).split("\n")


def test_the_page_is_what_the_command_draws():
    text = leaderboard.PAGE.read_text()
    assert leaderboard.page_with(text, leaderboard.table(leaderboard.entries())) == text


def test_a_row_says_what_the_file_says(tmp_path):
    lines = drawn(tmp_path, half=entry(), small=entry(about={"kv_bytes_per_token": [12288, 3072], "base_model": "a"}))
    assert lines[3] == (
        "| m | stock, 1 to 2 heads | 6,144 of 12,288 | spectral+refine | 1,024, 0 | a.txt (64 x 512) | 2.5000 | "
        "+0.2500 ±0.0100 | 0.1250 | 80.0% | piqa,acc 0.500 of 0.750 | torch 2 | [half.json](leaderboard/half.json) |"
    )
    assert lines[2].startswith("| a |")


@pytest.mark.parametrize(
    "data, why",
    [
        (entry(about={"kv_bytes_per_token": [1]}), "about.kv_bytes_per_token"),
        (entry(about={"refined_tokens": "1"}), "about.refined_tokens"),
        (entry(about={"commands": []}), "about.commands is empty"),
        (entry(values={}), "values.nll:wiki is missing"),
        ({"model": "half", "values": {}}, "about is missing"),
        ([], "object"),
    ],
)
def test_a_file_that_is_no_entry_is_named(tmp_path, data, why):
    with pytest.raises(GrouperError, match=rf"bad\.json is damaged \(.*{why}.*grouper evaluate MODEL --json"):
        drawn(tmp_path, bad=data)


def test_what_evaluate_prints_is_an_entry(reader, text, tmp_path):
    source = TextSource(str(text), purpose="evaluation")
    found = evaluate_model(reader, source, window=64, limit=4, command="grouper evaluate")
    lines = drawn(tmp_path, alone=found.to_data())
    kept = "1,536 of 1,536"  # 3 layers, 8 heads of 16, keys and values of 2 bytes
    start = (
        f"| {reader.name} | original, 8 heads | {kept} |  | 0, 0 | text.txt (4 x 64) | {found.values['nll']:.4f} |  |"
    )
    assert lines[2].startswith(start)
