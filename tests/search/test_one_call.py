"""`regroup`, as people call it."""

import json
from pathlib import Path

import pytest
import torch
from encoder_samples import files_for, with_reader
from transformers import AutoModelForCausalLM, AutoTokenizer

from grouper import GrouperError
from grouper.export.hub import Destination
from search import SearchOptions, regroup

QUICK = SearchOptions(generations=2, population=8)
TOKENS = torch.randint(3, 190, (2, 24), generator=torch.Generator().manual_seed(1))


def test_a_loaded_model_and_documents(reader, text, tmp_path):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(reader, trust_remote_code=False),
        AutoTokenizer.from_pretrained(reader, trust_remote_code=False),
    )
    documents = text.read_text().split("\n\n")[:40]
    options = {"tokens": 2048, "window": 64, "refine_tokens": 1024, "options": QUICK}
    small = regroup(model, tokenizer, text=documents, kv_ratio=0.5, **options)
    assert small.model.config.num_key_value_heads == 4 and small.exported.self_test.passed
    assert small.front.own_merge == "spectral" and small.front.table["kv_ratio"].min() == 1 / 8
    with torch.no_grad():
        expected = small.model(TOKENS).logits
    assert repr(small) == "Regrouped(LlamaForCausalLM, stock, 50.0% of the KV cache)" and small.measured == {}
    kept = small.save_pretrained(tmp_path / "kept")
    with pytest.raises(GrouperError, match="earlier output"):
        small.save(kept)
    again = AutoModelForCausalLM.from_pretrained(kept, trust_remote_code=False)
    with torch.no_grad():
        assert torch.allclose(again(TOKENS).logits, expected, atol=1e-5)
    assert AutoTokenizer.from_pretrained(kept, trust_remote_code=False).vocab_size == tokenizer.vocab_size


def test_a_folder_without_text_and_any_class(models):
    small = regroup(models("llama"), kv_ratio="1/4", deploy="any", options=SearchOptions(**{**vars(QUICK)}))
    assert small.exported.kv_bytes_per_token[1] * 4 == small.exported.kv_bytes_per_token[0]
    assert small.model(TOKENS).logits.shape == (2, 24, 199)


def test_another_text_is_measured_on_before_and_after(reader, text):
    other = [{"text": document, "id": 1} for document in text.read_text().split("\n\n")[40:60]]
    options = {"tokens": 512, "window": 64, "refine_tokens": 256, "merge": "mean", "options": QUICK}
    small = regroup(str(reader), text=text, evaluation=other, **options)
    before, after = small.measured["nats per token"]
    said = f"Regrouped(LlamaForCausalLM, stock, 50.0% of the KV cache, {after - before:+.4f} nats per token)"
    assert repr(small) == said
    facts = json.loads((Path(small.exported.folder) / "grouper.json").read_text())
    assert facts["measured"] == small.measured and facts["merge"] == "mean+refine"
    assert sorted(small.front.table["nll"].dropna()) == pytest.approx(sorted([before, after]))


def test_the_result_lies_where_a_loaded_model_does(reader, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(reader, trust_remote_code=False)
    place = next(model.parameters()).device
    monkeypatch.setattr(type(model), "device", torch.device("meta"))
    small = regroup(model, options=SearchOptions(**{**vars(QUICK), "fitness": "weight"}))
    assert {p.device.type for p in small.model.parameters()} == {"meta"}
    assert {p.device for p in model.parameters()} == {place}, "the given one stays"


def test_it_is_pushed_as_it_was_written(models, monkeypatch):
    small = regroup(models("llama"), options=SearchOptions(**{**vars(QUICK), "fitness": "weight"}))
    pushed = []
    monkeypatch.setattr(Destination, "check", lambda self: pushed.append(self))
    monkeypatch.setattr(Destination, "push", lambda self, folder: str((folder / "config.json").is_file()))
    assert small.push_to_hub("me/half", private=True) == "True"
    assert pushed == [Destination("me/half", private=True)]


def test_what_cannot_be_regrouped_is_said(reader):
    model = AutoModelForCausalLM.from_pretrained(reader, trust_remote_code=False)
    with pytest.raises(GrouperError, match="cannot regroup a int"):
        regroup(7)
    with pytest.raises(GrouperError, match="the model's tokenizer"):
        regroup(model, text=["a"])
    with pytest.raises(GrouperError, match="neither a file nor documents"):
        regroup(str(reader), text=[])
    with pytest.raises(GrouperError, match="text is a string of 5,000 characters and no file"):
        regroup(str(reader), text="word " * 1000)


def test_encoders_take_pairs_and_pictures(encoders, tmp_path):
    quick = SearchOptions(fitness="weight", generations=2, population=8)
    model = with_reader(encoders("t5"), tmp_path / "t5")
    pairs = [(f"one {i} two", f"two {i} one") for i in range(8)]
    small = regroup(model, text=pairs, window=24, tokens=64, refine=False, options=quick)
    assert type(small.model).__name__ == "RaggedT5ForConditionalGeneration" and small.exported.self_test.passed
    seen = with_reader(encoders("vit"), tmp_path / "vit")
    pictures = files_for("pictures", tmp_path / "pictures")["images"]
    small = regroup(seen, images=pictures, refine_tokens=64, options=quick)
    assert (
        small.exported.kv_bytes_per_token == (0, 0)
        and "refined" in (Path(small.exported.folder) / "grouper.json").read_text()
    )
    with pytest.raises(GrouperError, match="neither a file nor documents"):
        regroup(model, text=[("a", "b", "c")])
