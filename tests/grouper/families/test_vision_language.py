"""The text decoder inside vision-language models: regrouped in place, everything else as it was."""

import json

import pytest
import torch
from family_samples import EQUAL, RAGGED, gathered, layout_for
from safetensors.torch import load_file, save_file

from grouper import Architecture, Checkpoint, GrouperError, HeadLayout, export
from grouper.compress import Regrouper
from grouper.export import export_model
from grouper.merging import MERGES
from grouper.refinement.options import RefineOptions
from grouper.refinement.refine import refine_layers
from grouper.running.in_memory import InMemoryModel
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.methods import METHODS
from grouper.uptraining.student import Student

TEXT = {
    "vocab_size": 199, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 8,
}  # fmt: skip
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
SECTIONS = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}}
TOKENS = {"image_token_id": 198, "video_token_id": 197, "vision_start_token_id": 195, "vision_end_token_id": 196}
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "out_hidden_size": 64,
    "num_heads": 2,
    "patch_size": 4,
    "intermediate_size": 32,
}
SAMPLES = {
    "llava": {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": {**VISION,
    "model_type": "clip_vision_model"}},
    "gemma3": {"text_config": {**TEXT, "sliding_window": 8}, "vision_config": VISION, "mm_tokens_per_image": 4},
    "qwen2_vl": {
        "text_config": TEXT | SECTIONS, **TOKENS,
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4},
    },
    "qwen2_5_vl": {"text_config": TEXT | SECTIONS, "vision_config": QWEN_VISION, **TOKENS},
    "qwen3_vl": {"text_config": TEXT | SECTIONS, "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0]},
    **TOKENS},
    "mistral3": {"text_config": {**TEXT, "model_type": "mistral"}, "vision_config": {**VISION, "model_type": "pixtral",
    "head_dim": 16}},
    "smolvlm": {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": VISION, "image_token_id": 198},
    "paligemma": {
        "text_config": {**TEXT, "model_type": "gemma"}, "vision_config": {**VISION, "model_type": "siglip_vision_model",
        "projection_dim": 64},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    from transformers import AutoConfig, AutoModelForImageTextToText

    made = {}

    def get(name: str):
        if name not in made:
            torch.manual_seed(0)
            model = AutoModelForImageTextToText.from_config(
                AutoConfig.for_model(name, **SAMPLES[name]), trust_remote_code=False
            )
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            made[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(made[name])
        return made[name]

    return get


def logits(folder, tokens):
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    with torch.inference_mode():
        return model(input_ids=tokens).logits


@pytest.mark.parametrize("name", SAMPLES)
def test_the_decoder_is_regrouped_and_the_rest_stays(samples, tmp_path, name):
    folder = samples(name)
    prompt = torch.randint(3, 190, (2, 20), generator=torch.Generator().manual_seed(1))
    a = Architecture.of(Checkpoint.open(folder).config)
    assert a.nested and (a.layers, a.query_heads, a.kv_heads) == (2, 8, 4)
    for merge in ("mean", "spectral"):
        export(folder, HeadLayout.from_labels([range(4)] * 2, 8, 8), tmp_path / merge, merge=merge)
        assert (logits(tmp_path / merge, prompt) - logits(folder, prompt)).abs().max() < 1e-4
    layout = layout_for(folder, EQUAL)
    (folder / "additional_chat_templates").mkdir(exist_ok=True)
    companions = ["processor_config.json", "video_preprocessor_config.json", "additional_chat_templates/tool_use.jinja"]
    for file in companions:
        (folder / file).write_text("{}")
    done = export(folder, layout, tmp_path / "half")
    assert done.export_class == "stock" and done.loader == "AutoModelForImageTextToText"
    assert all((tmp_path / "half" / file).is_file() for file in companions)
    text = json.loads((tmp_path / "half" / "config.json").read_text())["text_config"]
    assert text["rope_theta"] and text["num_key_value_heads"] == 2
    assert (
        logits(tmp_path / "half", prompt) - logits(gathered(folder, tmp_path / "reference", layout), prompt)
    ).abs().max() < 1e-4
    before, after = (Checkpoint.open(f) for f in (folder, tmp_path / "half"))
    card = (tmp_path / "half" / "README.md").read_text()
    assert "AutoModelForImageTextToText" in card and "vllm" not in card, "no engine is named that was not run"
    towers = [n for n in before.tensors if "vision" in n or "visual" in n]
    assert towers and all(torch.equal(before.tensor(n), after.tensor(n)) for n in towers)
    with pytest.raises(GrouperError, match="vision-language"):
        export(folder, layout_for(folder, RAGGED), tmp_path / "ragged")


@pytest.mark.parametrize("name", SAMPLES)
def test_the_decoder_is_refined(samples, tmp_path, name):
    checkpoint = Checkpoint.open(samples(name))
    layout = layout_for(samples(name), EQUAL)
    start = Regrouper(checkpoint).merged(layout, MERGES["spectral"].before_refinement())
    windows = torch.randint(3, 190, (12, 16), generator=torch.Generator().manual_seed(0))
    options = RefineOptions("block", steps=8, batch_tokens=64)
    layers = refine_layers(InMemoryModel(checkpoint), layout, start, windows, options)
    assert any(layer.after < layer.before for layer in map(layers, range(2)))
    assert export(checkpoint, layout, tmp_path / "out", merged=layers).self_test.passed


@pytest.mark.parametrize("name", SAMPLES)
def test_the_decoder_is_trained_and_towers_stay(samples, tmp_path, name):
    export(samples(name), layout_for(samples(name), EQUAL), tmp_path / "in", merge="mean")
    model = ExportedModel.open(tmp_path / "in", str(samples(name)))
    student = Student(model, METHODS["distill"], "cpu")
    tokens = torch.randint(3, 190, (2, 20), generator=torch.Generator().manual_seed(1))
    assert (student.model(input_ids=tokens).logits - logits(tmp_path / "in", tokens)).abs().max() < 1e-3
    optimizer = torch.optim.AdamW([p for _, p in student.trained()], lr=0.003)
    student.model(input_ids=tokens).logits.square().mean().backward()
    assert all(p.grad is not None for _, p in student.trained()), "nothing is trained that text does not reach"
    optimizer.step()
    done = export_model(
        model.base, student.layout, tmp_path / "out", merged=student.layer, around=student.around()
    )  # fmt: skip
    assert done.self_test.passed
    before, after = (Checkpoint.open(tmp_path / f) for f in ("in", "out"))
    same = {n for n in before.tensors if torch.equal(before.tensor(n), after.tensor(n))}
    towers = {n for n in before.tensors if "vision" in n or "visual" in n}
    assert towers <= same and any("q_proj" in n for n in before.tensors.keys() - same)
    assert torch.allclose(student.model(input_ids=tokens).logits, logits(tmp_path / "out", tokens), atol=1e-3)


def test_older_names_and_flat_configurations_are_read(samples, tmp_path):
    """transformers 4 wrote Qwen2-VL without a text_config, and newer ones keep its decoder at model.language_model."""
    folder = tmp_path / "old"
    folder.mkdir()
    config = json.loads((samples("qwen2_vl") / "config.json").read_text())
    flat = {**config.pop("text_config"), **config, "model_type": "qwen2_vl"}
    (folder / "config.json").write_text(json.dumps(flat))
    tensors = load_file(samples("qwen2_vl") / "model.safetensors")
    save_file(
        {n.replace("model.layers.", "model.language_model.layers."): t for n, t in tensors.items()},
        folder / "model.safetensors",
    )
    checkpoint = Checkpoint.open(folder)
    a = Architecture.of(checkpoint.config)
    assert a.nested and a.kv_heads == 4 and a.prefix(checkpoint, 1) == "model.language_model.layers.1."
    assert a.read(checkpoint, 1).k.shape == (4, 8, 64)
