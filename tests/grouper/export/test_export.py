import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from tiny_models import add_tokenizer, logits, make_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, StaticCache

from grouper import Architecture, Checkpoint, ExportOptions, GrouperError, Grouping, HeadLayout, LayerLayout, export
from grouper.compress import Regrouper
from grouper.export.classes import CLASSES
from grouper.export.format import Job
from grouper.export.hf.readers import readable_by_all
from grouper.export.hf.stock import grouped_order
from grouper.export.self_test import run_self_test
from grouper.merging import MERGES

FAMILIES = [("llama", 8, 8), ("mistral", 12, 4), ("mistral", 8, 4), ("qwen2", 8, 8)]
ROWS = {"stock": [[0, 1, 0, 1], [0, 0, 1, 1], [0, 1, 1, 0]], "ragged": [[0, 0, 0, 1], [0, 1, 2, 1], [0, 0, 0, 0]]}


def layout_of(folder, deploy: str) -> HeadLayout:
    """A layout of that class for a model with 4 or 8 KV heads."""
    a = Architecture.of(Checkpoint.open(folder).config)
    if deploy == "padded":
        row = [0, 0, 0, 0, 1, 1, 2, 3] if a.kv_heads == 8 else [0, 0, 1, 2]
        rows = [np.array(row)[np.random.default_rng(i).permutation(a.kv_heads)] for i in range(3)]
        return HeadLayout.from_labels(rows, a.query_heads, a.head_dim)
    rows = [
        np.repeat(row, a.kv_heads // 4)[np.random.default_rng(i).permutation(a.kv_heads)]
        for i, row in enumerate(ROWS[deploy])
    ]
    return HeadLayout.from_labels(rows, a.query_heads, a.head_dim)


def gathered(folder, layout, prompt, merge="mean"):
    """The reference, written from the definition: every query head gets its group's merged K and V head by index, in
    the original class."""
    checkpoint = Checkpoint.open(folder)
    a = Architecture.of(checkpoint.config)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    config.num_key_value_heads = a.query_heads
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).float().eval()
    state = {name: checkpoint.tensor(name).float() for name in checkpoint.tensors}
    for layer, heads in enumerate(layout.layers):
        for kind in ("k", "v"):
            for part in ("weight", "bias"):
                name = f"model.layers.{layer}.self_attn.{kind}_proj.{part}"
                if name in state:
                    blocks = state[name].view(a.kv_heads, a.head_dim, -1)
                    merged = [blocks[list(sources)].mean(0) for sources in heads.k.members]
                    per_query = [
                        merged[next(g for g, readers in enumerate(heads.k.readers) if h in readers)]
                        for h in range(a.query_heads)
                    ]
                    state[name] = torch.cat(per_query).view(a.query_heads * a.head_dim, *state[name].shape[1:])
    model.load_state_dict(state, strict=False)
    with torch.inference_mode():
        return model(prompt).logits


@pytest.mark.parametrize("deploy", ["stock", "padded", "ragged"])
@pytest.mark.parametrize(("family", "heads", "kv_heads"), FAMILIES)
def test_an_export_is_the_index_gather_reference(models, tmp_path, prompt, family, heads, kv_heads, deploy):
    folder = models(family, heads=heads, kv_heads=kv_heads)
    layout = layout_of(folder, deploy)
    done = export(folder, layout, tmp_path / "out", options=ExportOptions(shard_bytes=100_000, max_padding=9.0))
    assert done.export_class == deploy == layout.export_class and done.self_test.passed
    assert len(Checkpoint.open(tmp_path / "out").weight_files) > 1
    for attention in ("eager", "sdpa"):
        ours = logits(tmp_path / "out", prompt, attn_implementation=attention)
        assert (ours - gathered(folder, layout, prompt)).abs().max() < 1e-4
    assert done.kv_bytes_per_token[1] == layout.kv_bytes_per_token() < done.kv_bytes_per_token[0]


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize(("family", "heads", "kv_heads"), FAMILIES)
def test_the_identity_grouping_is_the_original(models, tmp_path, prompt, family, heads, kv_heads, merge):
    folder = models(family, heads=heads, kv_heads=kv_heads)
    layout = HeadLayout.from_labels([range(kv_heads)] * 3, heads, 16)
    export(folder, layout, tmp_path / "out", merge=merge)
    assert (logits(tmp_path / "out", prompt) - logits(folder, prompt)).abs().max() < 1e-4


def test_padding_beyond_the_cap_goes_out_as_ragged(models, tmp_path):
    folder = models("llama", heads=8, kv_heads=8)
    done = export(folder, layout_of(folder, "padded"), tmp_path / "out")
    assert (
        done.export_class == "ragged"
        and "`max_padding=10%`" in done.note
        and done.engines
        != export(
            folder, layout_of(folder, "padded"), tmp_path / "padded", options=ExportOptions(max_padding=9.0)
        ).engines
    )
    config = json.loads((tmp_path / "padded" / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (16, 4, 16)
    assert config["model_type"] == "mistral" and config["sliding_window"] is None and "auto_map" not in config


def test_qwen2_is_padded_only_where_heads_divide_the_hidden_size(models, tmp_path):
    folder = models("qwen2", heads=8, kv_heads=8)
    layout = HeadLayout.from_labels([[0, 0, 0, 0, 0, 1, 2, 2]] * 3, 8, 16)  # 15 heads after padding
    done = export(folder, layout, tmp_path / "out", options=ExportOptions(max_padding=9.0))
    assert done.export_class == "ragged" and "divide by 15 heads" in done.note


def test_a_padded_mistral_keeps_its_window(tmp_path, prompt):
    folder = make_model(tmp_path / "in", "mistral", kv_heads=8, sliding_window=8)
    export(folder, layout_of(folder, "padded"), tmp_path / "out", options=ExportOptions(max_padding=9.0))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["sliding_window"] == 8
    assert (logits(tmp_path / "out", prompt) - gathered(folder, layout_of(folder, "padded"), prompt)).abs().max() < 1e-4


def test_a_planted_grouping_exports_without_loss(planted, tmp_path, prompt):
    folder, labels = planted
    layout = HeadLayout.from_labels(labels, 8, 16)
    assert export(folder, layout, tmp_path / "out").export_class == "stock"
    assert (logits(tmp_path / "out", prompt) - logits(folder, prompt)).abs().max() < 1e-4


def test_the_ragged_model_generates_with_every_cache_and_padding(models, tmp_path, prompt):
    folder = models("llama", heads=8, kv_heads=8)
    export(folder, layout_of(folder, "ragged"), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, trust_remote_code=True).eval()
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(prompt[:1], attention_mask=torch.ones(1, 24), **options)
    uncached = model.generate(prompt[:1], attention_mask=torch.ones(1, 24), use_cache=False, **options)
    static = model.generate(
        prompt[:1],
        attention_mask=torch.ones(1, 24),
        past_key_values=StaticCache(model.config, max_cache_len=40),
        **options,
    )
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), prompt[:1]], 1)
    mask = torch.cat([torch.zeros(1, 5), torch.ones(1, 24)], 1)
    left_padded = model.generate(
        torch.cat([padded, torch.cat([prompt[1:], prompt[1:, :5]], 1)]),
        attention_mask=torch.cat([mask, torch.ones(1, 29)]),
        **options,
    )
    assert plain.tolist() == uncached.tolist() == static.tolist()
    assert left_padded[0, 5:].tolist() == plain[0].tolist()
    cache = model(prompt, use_cache=True)[1]
    assert [layer.keys.shape[1] for layer in cache.layers] == [2, 3, 1]


def test_kernels_find_the_attention_they_are_called_by_and_models_can_be_copied(models, tmp_path, prompt):
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    seen = []

    def spy(module, *args, **kwargs):
        seen.append(module.config._attn_implementation)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", sdpa_mask)
    folder = models("llama", heads=8, kv_heads=8)
    export(folder, layout_of(folder, "ragged"), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, trust_remote_code=True).eval()
    expected = model(prompt).logits
    model.set_attn_implementation("spy")
    assert torch.allclose(model(prompt).logits, expected, atol=1e-5) and seen == ["spy"] * 3
    assert torch.allclose(copy.deepcopy(model)(prompt).logits, expected, atol=1e-5)


def test_the_ragged_model_trains_saves_and_reloads(models, tmp_path, prompt):
    folder = models("qwen2", heads=8, kv_heads=8)
    export(folder, layout_of(folder, "ragged"), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, trust_remote_code=True)
    model.gradient_checkpointing_enable()
    model.train()
    model(prompt, labels=prompt).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(tmp_path / "out", prompt), logits(tmp_path / "again", prompt))


def test_key_driven_layouts_read_heads_that_others_are_made_of(models, tmp_path, prompt):
    """Readers need not be sources: KV heads stay the neighbours' means, query heads are dealt out unevenly."""
    folder = models("llama", heads=8, kv_heads=8)
    grouping = Grouping(((0, 1, 2, 3, 4), (5,), (6, 7)), ((0, 1, 2), (3, 4, 5), (6, 7)))
    layout = HeadLayout((LayerLayout.shared(grouping),) * 3, 8, 8, 16)
    export(folder, layout, tmp_path / "out")
    assert (logits(tmp_path / "out", prompt) - gathered(folder, layout, prompt)).abs().max() < 1e-4


def test_what_comes_along_and_what_config_says(tmp_path):
    folder = make_model(tmp_path / "in", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0})
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    export(folder, layout_of(folder, "stock"), tmp_path / "out", origin={"method": "qcqa-ec"})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_key_value_heads"], config["head_dim"], config["rope_theta"], config["dtype"]) == (
        2,
        16,
        5000.0,
        "float32",
    )
    assert config["rope_scaling"]["factor"] == 2.0 and config["architectures"] == ["LlamaForCausalLM"]
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "grouper.json",
        "model.safetensors",
        "README.md",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert HeadLayout.from_json(
        json.dumps(json.loads((tmp_path / "out" / "grouper.json").read_text())["layout"])
    ) == layout_of(folder, "stock")


def test_older_readers_find_rope_at_the_top_level():
    kinds = {
        "full_attention": {"rope_theta": 5e5, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 1e4},
    }
    config = readable_by_all({"model_type": "gemma3_text", "rope_parameters": kinds}, "float32")
    assert (config["rope_theta"], config["rope_local_base_freq"], config["rope_scaling"]["factor"]) == (5e5, 1e4, 8.0)
    partial = {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.4}
    for family, key in (
        ("phi", "partial_rotary_factor"),
        ("gpt_neox", "rotary_pct"),
        ("grouper_ragged_gpt_neox", "rotary_pct"),
    ):
        config = readable_by_all({"model_type": family, "rope_parameters": partial}, "float32")
        assert config[key] == 0.4 and "rope_scaling" not in config


def test_exporting_twice_gives_the_same_bytes(models, tmp_path):
    folder = models("llama", heads=8, kv_heads=8)
    for name in ("a", "b"):
        export(folder, layout_of(folder, "ragged"), tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


@pytest.mark.parametrize("deploy", ["stock", "ragged"])
def test_the_self_test_sees_heads_in_a_wrong_order(models, tmp_path, deploy):
    folder = models("llama", heads=8, kv_heads=8)
    layout = layout_of(folder, deploy)
    checkpoint = Checkpoint.open(folder)
    merged = Regrouper(checkpoint).merged(layout, MERGES["mean"])
    export(folder, layout, tmp_path / "out")
    job, export_class = Job(checkpoint, layout, merged, ExportOptions()), CLASSES[deploy]
    assert run_self_test(job, tmp_path / "out", export_class).passed
    other = HeadLayout.from_labels([np.roll(layer.k.group_of, 1) for layer in layout.layers], 8, 16)
    with pytest.raises(GrouperError, match="self-test"):
        run_self_test(replace(job, layout=other), tmp_path / "out", export_class)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("deploy", ["stock", "ragged"])
def test_the_self_test_goes_layer_by_layer_where_memory_is_short(models, tmp_path, family, deploy):
    folder = models(family, heads=8, kv_heads=8)
    layout = layout_of(folder, deploy)
    checkpoint = Checkpoint.open(folder)
    merged = Regrouper(checkpoint).merged(layout, MERGES["mean"])
    options = ExportOptions(self_test_memory=0)
    assert export(folder, layout, tmp_path / "out", options=options).self_test.passed
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    wrong = [merged(0), merged(1), Regrouper(checkpoint).merged(layout, MERGES["select"])(2)]
    with pytest.raises(GrouperError, match="self-test"):
        run_self_test(Job(checkpoint, layout, wrong.__getitem__, options), tmp_path / "out", CLASSES[deploy])


def test_a_failed_export_leaves_nothing(models, tmp_path, monkeypatch):
    folder = models("llama", heads=8, kv_heads=8)

    def swapped(attention, layout):  # as if the order of heads were computed wrongly
        order = grouped_order(attention, layout)
        return replace(order, q=order.q.flip(0))

    monkeypatch.setattr("grouper.export.hf.stock.grouped_order", swapped)
    with pytest.raises(GrouperError, match="self-test"):
        export(folder, layout_of(folder, "stock"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_in_the_way(models, tmp_path):
    folder = models("llama", heads=8, kv_heads=8)
    layout = layout_of(folder, "stock")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(GrouperError, match="not written by Grouper"):
        export(folder, layout, tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"
    (tmp_path / "file").write_text("keep")
    with pytest.raises(GrouperError, match="not a folder"):
        export(folder, layout, tmp_path / "file", options=ExportOptions(overwrite=True))
    with pytest.raises(GrouperError, match="not written by Grouper"):
        export(folder, layout, tmp_path / "notes", options=ExportOptions(overwrite=True))
    export(folder, layout, tmp_path / "out")
    with pytest.raises(GrouperError, match="`overwrite=True`"):
        export(folder, layout, tmp_path / "out")
    export(folder, layout, tmp_path / "out", options=ExportOptions(overwrite=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "notes", "out"]


def test_code_that_the_original_names_is_neither_run_nor_passed_on(tmp_path):
    folder = make_model(tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for deploy in ("stock", "ragged"):
        export(folder, layout_of(folder, deploy), tmp_path / deploy)
        assert "evil" not in (tmp_path / deploy / "config.json").read_text()
    assert not (tmp_path / "ran").exists()


def test_the_model_itself_is_never_replaced(tmp_path):
    folder = make_model(tmp_path / "in")
    (folder / "grouper.json").write_text("{}")
    with pytest.raises(GrouperError, match="the model's own folder"):
        export(folder, layout_of(folder, "stock"), folder, options=ExportOptions(overwrite=True))
    assert (folder / "model.safetensors").is_file()


def test_layouts_of_another_model_and_separate_k_and_v_are_refused(models, tmp_path):
    folder = models("llama", heads=8, kv_heads=8)
    with pytest.raises(GrouperError, match="another model"):
        export(folder, HeadLayout.from_labels([[0, 0]] * 3, 8, 16), tmp_path / "out")
    two, one = Grouping.from_labels([0, 0, 0, 0, 1, 1, 1, 1]), Grouping.from_labels([0] * 8)
    with pytest.raises(GrouperError, match="grouped differently"):
        export(folder, HeadLayout((LayerLayout(two, one),) * 3, 8, 8, 16), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_card_says_what_was_measured_and_keeps_the_base_models(tmp_path):
    folder = make_model(tmp_path / "in")
    (folder / "README.md").write_text(
        "---\nlicense: mit\nlanguage:\n- en\nbase_model: old/one\ntags:\n- x\n---\n# Tiny\n\nIts own words.\n"
    )
    measured = {
        "nats per token": [2.0, 2.125],
        "hellaswag,acc_norm": [0.5, 0.25],
        "secret_task,acc": [1.0, 1.0],
        "mmlu,acc": [0.3, None],
    }
    origin = {"method": "qcqa-ec", "measured": measured, "search": "grouper search x", "export": "grouper export y"}
    for name in ("a", "b"):
        export(folder, layout_of(folder, "stock"), tmp_path / name, origin=origin)
    card = (tmp_path / "a" / "README.md").read_text()
    assert (
        "license: mit\nlanguage:\n- en\nlibrary_name" in card
        and "old/one" not in card
        and card.rstrip().endswith("Its own words.")
    )
    assert "| nats per token | 2.0000 | 2.1250 |" in card and "grouper search x\ngrouper export y" in card
    results = [(p.name, yaml.safe_load(p.read_text())) for p in (tmp_path / "a" / ".eval_results").iterdir()]
    expected = {
        "dataset": {"id": "Rowan/hellaswag", "task_id": "hellaswag"},
        "value": 0.25,
        "notes": "lm-evaluation-harness, acc_norm",
    }
    assert results == [("hellaswag_acc_norm.yaml", [expected])]
    for file in (p for p in (tmp_path / "a").rglob("*") if p.is_file()):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes(), file


@pytest.mark.parametrize("deploy", ["padded", "ragged"])
def test_a_tokenizer_that_only_the_models_type_names_stays_the_same(tmp_path, deploy):
    folder = make_model(tmp_path / "in", "qwen2", heads=8, kv_heads=8, vocab_size=4096, hidden_size=64)
    add_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    export(folder, layout_of(folder, deploy), tmp_path / "out", options=ExportOptions(max_padding=9.0))
    before, after = (AutoTokenizer.from_pretrained(f, trust_remote_code=False) for f in (folder, tmp_path / "out"))
    assert type(after) is type(before) and after.model_max_length == 77
    assert after("Don't   stop: 12345").input_ids == before("Don't   stop: 12345").input_ids
