"""Exported folders of every family and class, opened to be trained: the student computes what the folder does, and what
becomes of it goes out as the same class."""

import pytest
import torch
from family_samples import EQUAL, RAGGED, SAMPLES, UNEQUAL, layout_for, logits, make

from grouper import Checkpoint, ExportOptions, GrouperError, export
from grouper.export.write import export_model
from grouper.families.architecture import Architecture
from grouper.families.decoders import FAMILIES
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.methods import METHODS
from grouper.uptraining.student import Student

LAYOUTS = {"stock": EQUAL, "padded": UNEQUAL, "ragged": RAGGED}
CASES = [  # a class that a family lacks goes out as ragged, which is there
    (name, kind)
    for name, (family, _) in SAMPLES.items()
    for kind in LAYOUTS
    if kind == "ragged" or getattr(FAMILIES[family], kind) or FAMILIES[family].as_phi
]
TOKENS = torch.randint(3, 190, (2, 24), generator=torch.Generator().manual_seed(1))


def exported(samples, name: str, kind: str, folder) -> ExportedModel:
    original = samples(name)
    layout = layout_for(original, LAYOUTS[kind])
    export(original, layout, folder, merge="mean", options=ExportOptions(max_padding=9.0))
    return ExportedModel.open(folder, str(original))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_student_is_the_folder_and_changed_it_is_written_as_the_same_class(samples, name, kind, tmp_path):
    try:
        model = exported(samples, name, kind, tmp_path / "in")
    except GrouperError as error:
        assert "only stock ones" in str(error) and kind != "stock" and Architecture.of(
            Checkpoint.open(samples(name)).config
        ).as_phi  # fmt: skip
        return
    student = Student(model, METHODS["distill"], "cpu")
    student.model.config._experts_implementation = "eager"  # other ways to compute experts know no such numbers
    student.model.double()
    with torch.no_grad():
        got = student.model(TOKENS).logits
    assert (got - logits(tmp_path / "in", TOKENS)).abs().max() < 1e-4, "before training"
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in student.named_parameters():
            parameter += 0.05 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator).double()
    student.model.float()
    done = export_model(
        model.base, student.layout, tmp_path / "out", merged=student.layer, around=student.around(),
        options=ExportOptions(max_padding=9.0),
    )  # fmt: skip
    assert done.self_test.passed and done.export_class == model.export_class
    student.model.double()
    with torch.no_grad():
        changed = student.model(TOKENS).logits
    assert (changed - got).abs().max() > 1e-3, "it did change"
    assert (changed - logits(tmp_path / "out", TOKENS)).abs().max() < 1e-4, "after training"


def test_a_shared_head_gets_the_gradients_of_all_its_readers(samples, tmp_path):
    """By the chain rule: with a K head of its own for each query head, their gradients add up to the shared one's."""
    model = exported(samples, "llama", "stock", tmp_path / "in")
    student = Student(model, METHODS["distill"], "cpu")
    student.model(TOKENS).logits.square().sum().backward()
    shared = student.attentions[1].k.weight.grad.view(2, 16, -1)
    copies = Student(model, METHODS["distill"], "cpu")
    leaf = copies.attentions[1]
    each = leaf.weights().expanded(leaf.layout).k.detach().requires_grad_()  # [H, d, D]
    whole = leaf.weights

    def own_copies():
        attention = whole()
        expanded = attention.expanded
        attention.expanded = lambda layout: _with_k(expanded(layout), each)
        return attention

    leaf.weights = own_copies
    copies.model(TOKENS).logits.square().sum().backward()
    for group, readers in enumerate(leaf.layout.k.readers):
        assert torch.allclose(shared[group], each.grad[list(readers)].sum(0), rtol=1e-3, atol=1e-3)


def _with_k(attention, k):
    attention.k = k
    return attention


def test_padded_heads_stay_zero(samples, tmp_path):
    model = exported(samples, "llama", "padded", tmp_path / "in")
    assert model.export_class == "padded"
    student = Student(model, METHODS["distill"], "cpu")
    optimizer = torch.optim.AdamW([p for _, p in student.trained()], lr=0.01)
    student.model(TOKENS).logits.square().sum().backward()
    optimizer.step()
    export_model(model.base, student.layout, tmp_path / "out", merged=student.layer, around=student.around(),
                 options=ExportOptions(max_padding=9.0))  # fmt: skip
    written, before = Checkpoint.open(tmp_path / "out"), Checkpoint.open(tmp_path / "in")
    name = "model.layers.0.self_attn.q_proj.weight"
    q, was = (c.tensor(name).view(-1, 16, 64) for c in (written, before))
    empty = (was == 0).all(-1).all(-1)
    assert empty.sum() == 4 and (q[empty] == 0).all() and (q[~empty] != was[~empty]).any()
    o = written.tensor("model.layers.0.self_attn.o_proj.weight").view(64, -1, 16)
    assert (o[:, empty] == 0).all()


@pytest.mark.parametrize("train", ["full", "lora"])
def test_what_is_trained(samples, tmp_path, train):
    """Adapters alone, which change nothing before they learnt something; else everything that is written."""
    if train == "lora":
        pytest.importorskip("peft")  # the extra `lora`
    model = exported(samples, "qwen2", "stock", tmp_path / "in")
    student = Student(model, METHODS["distill"], "cpu", lora=4 if train == "lora" else 0)
    trained = dict(student.trained())
    assert {id(p) for p in student.model.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    assert all(("lora_" in n) == (train == "lora") for n in trained)
    with torch.no_grad():
        before = student.model(TOKENS).logits
        assert torch.allclose(before, logits(tmp_path / "in", TOKENS).float(), atol=1e-3)
        for parameter in trained.values():
            parameter += 0.02
        changed = student.model(TOKENS).logits
        student.fold()
        assert torch.allclose(student.model(TOKENS).logits, changed, atol=1e-3)
    assert (changed - before).abs().max() > 0.01
    export_model(model.base, student.layout, tmp_path / "out", merged=student.layer, around=student.around())
    assert torch.allclose(logits(tmp_path / "out", TOKENS).float(), changed, atol=1e-3)


@pytest.mark.parametrize("name", ["opt", "falcon-alibi"])
def test_recomputed_activations_drop_nothing_out(tmp_path, name):
    """Layers that are told to compute again believe they are trained, and would drop something out by themselves."""
    dropped = {"dropout": 0.3, "attention_dropout": 0.3, "hidden_dropout": 0.3, "layerdrop": 0.3}
    family, options = SAMPLES[name]
    original = make(tmp_path / "original", family, {**options, **dropped})
    export(original, layout_for(original, EQUAL), tmp_path / "in", merge="mean")
    student = Student(ExportedModel.open(tmp_path / "in", str(original)), METHODS["distill"], "cpu")
    once = student.model(TOKENS, use_cache=False).logits
    student.checkpoint_activations()
    again = student.model(TOKENS, use_cache=False).logits
    assert again.requires_grad and torch.allclose(once, again, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(once, student.model(TOKENS, use_cache=False).logits, atol=1e-5)
