"""README's commands on a real model of half a billion parameters, on CPU with few tokens: from inspection to training,
and what comes out is loaded by transformers alone. Every size that separates small models from real ones is behind it.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from commands import grouper

REAL = Path(__file__).parent.parent / ".real-models"
MODEL = REAL / "Qwen2.5-Coder-0.5B-Instruct"
CALIBRATION, EVALUATION = (REAL / f"wikipedia-{name}.txt" for name in ("calibration", "evaluation"))
FEW = ("--tokens", 1024, "--window", 256)

pytestmark = pytest.mark.real


def test_the_main_job(tmp_path):
    def typed(*words: object) -> str:
        done = grouper(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout + done.stderr

    assert "14 query heads over 2 KV heads of 64" in typed("inspect", MODEL, "--batch", 32, "--card", "80GB")
    typed("search", MODEL, "-o", "run", "--text", CALIBRATION, *FEW)
    said = typed("export", "run", "-o", "regrouped", "--kv-ratio", "1/2", "--refine-tokens", 512)
    assert "self-test passed: every layer of the folder" in said and "transformers finds all 291 tensors" in said
    assert "self-test passed" in typed("check", "regrouped")
    refined = measured(typed("evaluate", "regrouped", "--text", EVALUATION, "--limit", 2, "--window", 256, "--json"))
    typed("export", "run", "-o", "averaged", "--kv-ratio", "1/2", "--merge", "mean", "--no-refine")
    averaged = measured(typed("evaluate", "averaged", "--text", EVALUATION, "--limit", 2, "--window", 256, "--json"))
    assert 0 < refined["kl"] < averaged["kl"] / 4, (refined, averaged)
    training = ("--tokens", 1536, "--step-tokens", 512, "--window", 256, "--lr", 1e-5)
    said = typed("uptrain", "regrouped", "-o", "healed", "--text", CALIBRATION, *training)
    assert "self-test passed" in said
    for name in ("regrouped", "healed"):
        check_plain(tmp_path / name)


def measured(printed: str) -> dict[str, float]:
    return json.loads(printed[printed.index("{") : printed.rindex("}") + 1])["values"]


def check_plain(folder: Path) -> None:
    """transformers alone loads it as what it is, and it goes on with a text as sense has it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert type(model).__name__ == "Qwen2ForCausalLM" and model.config.num_key_value_heads == 1
    given = tokenizer("London is the capital of England, and Paris is the capital of", return_tensors="pt")
    with torch.no_grad():
        loss = model(**given, labels=given["input_ids"]).loss.item()
        written = model.generate(**given, max_new_tokens=4, do_sample=False)
    assert loss < math.log(200) and len(written[0]) > given["input_ids"].shape[1]
