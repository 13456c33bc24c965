"""Proofs: classes of every kind pass, and what is mistaken does not."""

from dataclasses import replace

import pytest
import torch

from grouper import GrouperError
from grouper.families.decoders import FAMILIES
from grouper.families.derived.candidate import Candidate, running
from grouper.families.derived.classes import class_of
from grouper.families.derived.proof import prove
from grouper.families.derived.small import EVERY_SIZE, MULTI_HEAD, full_settings
from grouper.families.derived.survey_one import prove_entry, surveyed
from grouper.families.storage import Fused

SAMPLES = {  # by what is particular about them
    "arcee": ["stock", "padded", "ragged"],  # as Llama
    "cohere2": ["stock", "padded", "ragged"],  # interleaved, layers without RoPE, windows
    "glm4": ["stock", "padded", "ragged"],  # half of the rows rotated, norms before and after
    "hunyuan_v1_dense": ["stock", "padded", "ragged"],  # norms behind RoPE
    "minimax_m2": ["stock", "ragged"],  # norms across heads, half of the rows rotated, experts
    "biogpt": ["ragged"],  # no KV heads of its own number in its class, no RoPE
    "esm": ["ragged"],  # an encoder of proteins
    "modernbert": ["ragged"],  # an encoder with one module for q, k and v
    "yolos": ["ragged"],  # an encoder whose class wants as many K heads as query heads
    "dinov2": ["ragged"],  # of pictures, whose tensors have other names
    "m2m_100": ["ragged"],  # an encoder and a decoder
}


@pytest.mark.parametrize("model_type", SAMPLES)
def test_a_type_without_an_entry_is_proved(candidates, tmp_path, model_type):
    family = prove(candidates(model_type), tmp_path)
    assert family.export_classes(False) == SAMPLES[model_type] and family.proved
    assert model_type not in FAMILIES


FREE = "the proof that what its positions and norms leave free changes no logit failed: logits differ"
READ = "the proof that attention that is read and put back gives the same logits failed: logits differ"
ALIKE = "the proof that the other order of RoPE's planes does not do as well failed: it does, so that nothing tells"
MISTAKES = {  # of the family that is derived: what of it is changed, and the step that finds it
    "arcee": ({"rope": "interleaved"}, FREE),
    "cohere2": ({"rope": "half"}, FREE),
    "glm4": ({"rope": "half"}, FREE),
    "cwm": ({"unrotated": "full_attention"}, FREE),
    "hunyuan_v1_dense": ({"qk_norm": None}, FREE),
    "minimax_m2": ({"qk_norm": "head"}, "the proof that transformers finds every tensor of it failed"),
    "biogpt": ({"position": "rope"}, ALIKE),
}


@pytest.mark.parametrize("model_type", MISTAKES)
def test_a_mistaken_family_fails_the_proof(candidates, tmp_path, model_type):
    fields, failed = MISTAKES[model_type]
    candidate = candidates(model_type)
    mistaken = replace(candidate, family=replace(candidate.family, **fields))
    with pytest.raises(GrouperError, match=failed):
        prove(mistaken, tmp_path)


@pytest.mark.parametrize("model_type", ["phi3", "gpt_neox"])
def test_the_other_order_of_a_fused_module_fails_the_proof(tmp_path, model_type):
    classes, family = class_of(model_type), FAMILIES[model_type]
    choice = EVERY_SIZE if family.stock else (MULTI_HEAD,)
    _, _, model, _ = running(classes, *full_settings(model_type, {}), choice)
    assert isinstance(family.storage, Fused)
    other = replace(family.storage, per_group=not family.storage.per_group)
    mistaken = replace(family, storage=other, proved=True, as_phi=None)
    with pytest.raises(GrouperError, match=READ if model_type == "phi3" else FREE):
        prove(Candidate(mistaken, model), tmp_path)


def test_a_model_that_is_saved_wrongly_fails_at_that_step(candidates, tmp_path, monkeypatch):
    candidate = candidates("arcee")
    monkeypatch.setattr(type(candidate.model), "save_pretrained", lambda *_: 1 / 0)
    with pytest.raises(GrouperError, match="the proof that its small model can be saved failed: it ended in an error"):
        prove(candidate, tmp_path)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "olmo2", "gpt2", "gptj", "bert", "t5"])
def test_entries_pass_the_same_proof(model_type):
    """One of each kind; all of them in the survey."""
    assert prove_entry(model_type, {"model_type": model_type}).family == FAMILIES[model_type]


REFUSED = {
    "bitnet": "no projection reads attention's output as it is: a gate or a norm stands between",
    "gpt_bigcode": "it is multi-query already: there is nothing left to group",
    "deepseek_v3": "its keys and values are compressed together (MLA): there are no KV heads to group",
    "emu3": "it is made of models of other types",
    "gpt_neo": "its attention does not call the attention kernels of transformers",
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_is_unlike_is_refused_with_the_reason(model_type):
    found = surveyed(model_type)
    assert not found.supported and found.reason == REFUSED[model_type] and not found.classes


def test_the_model_that_was_proved_stays_as_it_was(candidates, tmp_path):
    """A proof computes in copies and files."""
    candidate = candidates("arcee")
    before = {name: parameter.clone() for name, parameter in candidate.model.named_parameters()}
    prove(candidate, tmp_path)
    assert all(torch.equal(before[name].float(), p.float()) for name, p in candidate.model.named_parameters())
