"""bench/same.py sees what differs, and says what is only new."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import ROOT

sys.path.append(str(ROOT / "bench"))
from same_files import Found, facts_of


def compared(tmp_path: Path, name: str, old, new) -> Found:
    """old, new: text, or tensors by name."""
    for folder, content in (("old", old), ("new", new)):
        (tmp_path / folder).mkdir()
        if isinstance(content, dict):
            save_file({n: tensor.clone() for n, tensor in content.items()}, tmp_path / folder / name)
        elif content is not None:
            (tmp_path / folder / name).write_text(content)
    found = Found()
    found.folders(tmp_path / "old", tmp_path / "new")
    return found


TABLE = "layout,error,deploy\n0,0.0,stock\n1,4.0,padded\n"
PAGE = '<script type="application/json" id="data">{}</script>'


@pytest.mark.parametrize(
    "name, old, new, where, how_much",
    [
        ("a.csv", TABLE, TABLE.replace("4.0", "4.5"), "error", 0.125),
        ("a.csv", TABLE, TABLE.replace("padded", "ragged"), "deploy, row 1", math.inf),
        ("a.csv", TABLE, TABLE.replace("1,4.0,padded\n", ""), "2 rows became 1", math.inf),
        ("a.csv", TABLE, TABLE.replace("error", "loss"), "lacks error", math.inf),
        ("a.csv", TABLE, TABLE.replace("4.0", ""), "error, row 1", math.inf),
        ("a.json", '{"a": {"b": [1, 2.0]}}', '{"a": {"b": [1, 3.0]}}', "a b[1]", 0.5),
        ("a.json", '{"a": [1]}', '{"a": [1, 2]}', "a.json a", math.inf),
        ("a.json", '{"a": "x"}', '{"a": null}', "a.json a", math.inf),
        ("a.jsonl", '{"a": 1}\n{"a": 2}', '{"a": 1}\n{"a": 1}', "[1] a", 0.5),
        ("a.html", PAGE.format('{"a": 4}'), PAGE.format('{"a": 5}'), "a.html a", 0.25),
        ("a.html", PAGE.format('{"a": 4}'), "<html>", "facts are not to be found", math.inf),
        ("a.bin", "x", "y", "a.bin", math.inf),
        ("a.json", "{}", None, "lacks a.json", math.inf),
    ],
)
def test_what_differs_is_named_with_how_much(tmp_path, name, old, new, where, how_much):
    ((found, much),) = compared(tmp_path, name, old, new).differences
    assert where in found and much == how_much


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_tensors_are_compared_bit_for_bit(tmp_path, dtype):
    one = torch.tensor([[1, -4], [2, 0]]).to(dtype)
    other = one.clone()
    other[1, 0] = 3
    ((where, much),) = compared(tmp_path, "a.safetensors", {"w": one, "b": one}, {"w": other, "b": one}).differences
    assert where.endswith("a.safetensors w") and much == 0.25


def test_the_last_bit_the_sign_of_zero_shapes_and_numbers_that_are_none_count(tmp_path):
    one = torch.tensor([1.0, 0.0, math.nan])
    new = {"bit": torch.nextafter(one, one + 1), "zero": one * torch.tensor([1.0, -1.0, 1.0]), "shape": one[None],
           "type": one.double(), "nan": torch.tensor([1.0, 0.0, 0.0]), "same": one}  # fmt: skip
    new["bit"][1] = 0.0
    found = compared(tmp_path, "a.safetensors", dict.fromkeys(new, one), new)
    much = {where.split()[1].rstrip(":"): much for where, much in found.differences}
    assert much.keys() == {"bit", "zero", "shape", "type", "nan"}
    assert 0 < much["bit"] < 2e-7 and much["zero"] == 0 and much["nan"] == much["shape"] == much["type"] == math.inf


@pytest.mark.parametrize(
    "name, old, new, said",
    [
        ("a.csv", TABLE, "layout,error,deploy,kl\n0,0.0,stock,1\n1,4,padded,2\n", "new kl"),
        (
            "a.json",
            '{"a": 1, "timings": 2, "command": 1}',
            '{"b": 1, "a": 1.0, "timings": 3, "command": "y"}',
            "new b",
        ),
        ("a.json", '{"note": "x"}', '{"note": "y"}', "note reads otherwise"),
        ("a.md", "x", "y", "a.md reads otherwise"),
        ("a.json", None, "{}", "new a.json"),
    ],
)
def test_what_is_new_or_reads_otherwise_is_said_and_allowed(tmp_path, name, old, new, said):
    found = compared(tmp_path, name, old, new)
    assert not found.differences and said in " ".join(found.notes)


def test_a_string_may_tell_its_own_place_and_no_other():
    found = Found(("/at/old", "/at/new"))
    found.data("a", "/at/old/run", "/at/new/run")
    assert not found.differences
    found.data("a", "/at/old/run", "/at/new/walk"), found.data("a", "/at/old/run", "/at/old/run")
    assert len(found.differences) == 1


def test_the_facts_of_a_report_are_found():
    from search.report.page import packed

    page = f'<script type="application/octet-stream" id="data">{packed(json.dumps({"a": 1}))}</script>'
    assert facts_of(page) == {"a": 1}
    assert facts_of(PAGE.format('{"a": 0.5}')) == {"a": 0.5}
