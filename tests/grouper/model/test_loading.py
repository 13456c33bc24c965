"""Loading through transformers: a folder's code stays unread, and nobody is asked whether it may run."""

import json
import shutil

import pytest
import transformers
from evil_models import EVIL, add_code, answers  # noqa: F401  a fixture
from tiny_models import SIZES

from grouper import GrouperError
from grouper.model.loading import load, refusing_code

NEED_CODE = {
    "named as its own": {"tokenizer_class": "EvilTokenizer"},
    "through a class that has forgotten the argument": {"tokenizer_class": "AutoImageProcessor", "auto_map": {}},
}


@pytest.mark.parametrize("tokenizer", NEED_CODE.values(), ids=NEED_CODE)
def test_a_tokenizer_that_needs_code_is_refused_unasked(reader, tmp_path, answers, tokenizer):  # noqa: F811
    folder = shutil.copytree(reader, tmp_path / "model")
    mark = add_code(folder, tokenizer=tokenizer)
    if tokenizer["tokenizer_class"] == "AutoImageProcessor":
        try:
            transformers.AutoImageProcessor.register  # noqa: B018  a stand-in raises at any name
        except ImportError:
            pytest.skip(f"transformers {transformers.__version__} has this class only where torchvision is")
    with pytest.raises(GrouperError, match="asks for code of its own to be run") as refused:
        load("AutoTokenizer", folder)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)
    assert answers.tell() == 0 and not mark.exists()


@pytest.mark.parametrize("auto", ["AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"])
def test_what_transformers_knows_itself_is_loaded_by_its_own_classes(reader, tmp_path, answers, auto):  # noqa: F811
    folder = shutil.copytree(reader, tmp_path / "model")
    mark = add_code(folder)
    assert type(load(auto, folder)).__module__.startswith("transformers.")
    assert answers.tell() == 0 and not mark.exists()


def test_a_nested_model_is_not_asked_for_either(tmp_path, answers):  # noqa: F811
    """Classes build the models within them from their configurations, and give no argument on."""
    from transformers import AutoModelForImageTextToText, LlavaConfig

    mark = add_code(tmp_path)
    vision = {"model_type": "align_vision_model", "auto_map": EVIL, "_name_or_path": str(tmp_path)}
    config = LlavaConfig(vision_config=vision, text_config={"model_type": "llama", **SIZES})
    with pytest.raises(GrouperError, match="the model asks for code"), refusing_code("the model"):
        AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    assert answers.tell() == 0 and not mark.exists()


def test_afterwards_transformers_is_as_it_was():
    from transformers import dynamic_module_utils as code

    before = code.TIME_OUT_REMOTE_CODE
    assert before > 0
    with pytest.raises(ValueError, match="something else"), refusing_code("a"), refusing_code("b"):
        assert code.TIME_OUT_REMOTE_CODE == 0
        raise ValueError("something else")
    assert before == code.TIME_OUT_REMOTE_CODE


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation_internal", "experts_implementation"])
@pytest.mark.parametrize("value", ["someone/kernel", {"": "paged|someone/kernel"}])
def test_kernels_from_the_hub_are_refused(reader, tmp_path, field, value):
    """transformers downloads and runs them where the kernels package is installed."""
    from grouper import Checkpoint

    folder = shutil.copytree(reader, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for place in (config, {**config, "text_config": {field: value}}):
        (folder / "config.json").write_text(json.dumps({**place, field: value} if place is config else place))
        with pytest.raises(GrouperError, match=f"{field} .*someone/kernel.*one that transformers has itself"):
            Checkpoint.open(folder)
    (folder / "config.json").write_text(json.dumps({**config, field: "sdpa"}))
    Checkpoint.open(folder)


def test_an_adapter_beside_the_weights_is_refused(reader, tmp_path):
    from grouper import Checkpoint

    folder = shutil.copytree(reader, tmp_path / "model")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(GrouperError, match=r"adapter_config\.json.*merge_and_unload"):
        Checkpoint.open(folder)
