"""The literature's ways to train, each by hand on one layer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from family_samples import EQUAL, layout_for

from grouper import GrouperError, HeadLayout, export
from grouper.layout import LayerLayout
from grouper.registry import check_assignments
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.methods import METHODS
from grouper.uptraining.published.learned_sums import LearnedSums
from grouper.uptraining.published.perturbed import Perturbed, PerturbedAttention, noise_like
from grouper.uptraining.published.redealing import Redealing, RedealtAttention, dealt
from grouper.uptraining.student import Student

TOKENS = torch.randint(3, 190, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mean_of_neighbours(samples, tmp_path):
    def get(name: str = "llama-biased", labels=(0, 0, 1, 1)) -> ExportedModel:
        original = samples(name)
        export(original, layout_for(original, [list(labels)] * 2), tmp_path / "in", merge="mean")
        return ExportedModel.open(tmp_path / "in", str(original))

    return get


@pytest.mark.parametrize("name", ["wgqa", "wgqa-column", "wgqa-row"])
def test_learned_sums_begin_with_the_mean_and_scale_what_they_are_named_after(mean_of_neighbours, name):
    model = mean_of_neighbours()
    student = Student(model, METHODS[name], "cpu")
    plain = Student(model, METHODS["distill"], "cpu")
    with torch.no_grad():
        assert torch.allclose(student.model(TOKENS).logits, plain.model(TOKENS).logits, atol=2e-3)
    attention, original = student.attentions[0], model.architecture.read(model.base, 0)
    d, D = original.k.shape[1:]
    assert attention.k_shares.shape[1:] == {"wgqa": (1, 1), "wgqa-column": (d, 1), "wgqa-row": (1, D)}[name]
    with torch.no_grad():
        attention.k_shares[0].zero_()  # head 0 no longer counts in its group
        attention.k_shares[1].fill_(2.0)
    members = attention.layout.k.members[0]
    wanted = 2 * original.k[1] + sum(original.k[m] / len(members) for m in members if m > 1)
    assert torch.allclose(attention.weights().k[0], wanted, atol=1e-5)
    bias = 2 * original.k_bias[1] + sum(original.k_bias[m] / len(members) for m in members if m > 1)
    assert torch.allclose(attention.weights().k_bias[0], bias, atol=1e-5)
    student.model(TOKENS).logits.square().sum().backward()
    assert attention.v_shares.grad.abs().sum() > 0 and attention.v.weight.grad.abs().sum() > 0


def test_queries_are_dealt_out_in_their_order():
    layer = LayerLayout.from_labels([0, 0, 1, 1, 2, 2, 3, 3])
    again = dealt(layer, [1, 4, 2, 1])
    assert again.k.readers == ((0,), (1, 2, 3, 4), (5, 6), (7,))
    assert again.k.members == layer.k.members and again.v.readers == again.k.readers


def test_dgqa_deals_by_key_norms_every_so_many_steps(mean_of_neighbours):
    """Norms by hand: of the shared K heads' outputs over what entered the layer."""
    model = mean_of_neighbours()
    student = Student(model, METHODS.configured(["dgqa.every=2"])["dgqa"], "cpu")
    attention, seen = student.attentions[0], []
    with torch.no_grad():
        attention.k.weight[: attention.k.weight.shape[0] // 2] *= 3  # the first K head's keys are larger
    student.loaded.query_projection(0)
    hook = attention.inner.get_submodule("q_proj").register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    student.model(TOKENS)
    hook.remove()
    keys = seen[0].detach() @ attention.k.weight.T + attention.k.bias
    norms = keys.unflatten(-1, (2, -1)).square().sum((0, 1, 3)).sqrt()
    assert torch.allclose(attention.energy.sqrt(), norms, rtol=1e-3)
    before = attention.layout
    attention.after_step(1)
    assert attention.layout == before and attention.energy.sum() == 0, "not yet, and the next step counts anew"
    student.model(TOKENS)
    attention.after_step(2)
    queries = sum(before.k.sizes)
    first = int(np.round(queries * float(0.9 * norms[0]) / float(0.9 * norms.sum())))
    assert attention.layout.k.sizes == (min(first, queries - 1), max(queries - first, 1))
    assert torch.allclose(attention.before, norms, rtol=1e-3)
    with torch.no_grad():
        student.model(TOKENS)
    assert attention.energy.sum() == 0, "what is only looked at does not count"


def test_dgqa_wants_neighbours(samples, tmp_path):
    original = samples("llama")
    export(original, layout_for(original, EQUAL), tmp_path / "in", merge="mean")
    with pytest.raises(GrouperError, match="no neighbours"):
        METHODS["dgqa"].check(ExportedModel.open(tmp_path / "in", str(original)))


def test_the_noise_has_the_outputs_mean_and_deviation():
    output = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0)) * 2 + 1  # [windows, tokens, heads, d]
    noise = noise_like(output, torch.Generator().manual_seed(1))
    rows, wanted = (t.transpose(1, 2).flatten(2) for t in (noise, output))
    assert torch.allclose(rows.mean(-1), wanted.mean(-1), atol=1e-5)
    assert torch.allclose(rows.std(-1), wanted.std(-1), rtol=1e-4)
    assert noise.shape == output.shape and (noise - output).abs().max() > 0.1
    assert torch.equal(noise, noise_like(output, torch.Generator().manual_seed(1)))
    flat = (rows[0] - rows[0].mean(-1, keepdim=True)) / rows[0].std(-1, keepdim=True)
    lowest, diagonal = flat.min(-1).values, torch.stack([flat[h, h] for h in range(3)])
    assert torch.allclose(diagonal, lowest, atol=1e-5), "uniform on [0, 1), but for zeros on the diagonal"


def test_pgqa_perturbs_training_alone(mean_of_neighbours):
    model = mean_of_neighbours()
    plain, noisy = (Student(model, METHODS[name], "cpu") for name in ("distill", "pgqa"))
    with torch.no_grad():
        assert torch.equal(noisy.model(TOKENS).logits, plain.model(TOKENS).logits)
    one = noisy.model(TOKENS).logits
    assert (one - plain.model(TOKENS).logits).abs().max() > 0.01
    assert torch.equal(one, noisy.model(TOKENS).logits), "one step, one noise"
    for attention in noisy.attentions:
        attention.after_step(1)
    assert not torch.equal(one, noisy.model(TOKENS).logits)


def test_parameters_are_checked():
    with pytest.raises(GrouperError, match="expected one of scalar, column, row"):
        LearnedSums(kind="diagonal")
    with pytest.raises(GrouperError, match="from 0 on"):
        Perturbed(scale=-1.0)
    check_assignments(["dgqa.every=5", "pgqa.scale=0.5"], METHODS)
    assert METHODS.configured(["dgqa.every=5"])["dgqa"].every == 5


def test_wgqa_refuses_what_is_no_mean(samples, tmp_path):
    original = samples("llama")
    layout = layout_for(original, EQUAL)
    export(original, HeadLayout(layout.layers, 8, 4, 16), tmp_path / "in", merge="spectral")
    with pytest.raises(GrouperError, match="export with `merge=mean` `refine=False`"):
        METHODS["wgqa"].check(ExportedModel.open(tmp_path / "in", str(original)))


def redealt(method: Redealing, layout: LayerLayout) -> RedealtAttention:
    """What deals query heads out, without a model around it."""
    attention = RedealtAttention.__new__(RedealtAttention)
    torch.nn.Module.__init__(attention)
    attention.method, attention.layout = [method], layout
    attention.register_buffer("before", torch.zeros(layout.k.kv_heads))
    attention.register_buffer("energy", torch.zeros(layout.k.kv_heads))
    return attention


@pytest.mark.parametrize("difference", [False, True])
def test_a_deal_weighs_the_norms_of_now_and_of_the_deal_before(difference):
    """8 queries over two heads. Norms 3 and 1, then 2 and 6: the average is 0.9 * 2 + 0.1 * 3 = 2.1 to 5.5, two to
    six; the difference |3 - 2| to |1 - 6| is 1 to 5, one to seven."""
    layout = LayerLayout.from_labels([0, 1], 4)
    attention = redealt(Redealing("dgqa", 2, difference), layout)
    attention.energy.copy_(torch.tensor([9.0, 1.0]))
    attention.after_step(1)
    assert attention.layout == layout and attention.energy.sum() == 0 and attention.step == 1
    attention.energy.copy_(torch.tensor([9.0, 1.0]))
    attention.after_step(2)
    assert attention.layout.k.sizes == attention.layout.v.sizes == (6, 2)
    assert attention.before.tolist() == [3.0, 1.0] and attention.energy.sum() == 0
    attention.energy.copy_(torch.tensor([4.0, 36.0]))
    attention.after_step(4)
    assert attention.layout.k.sizes == ((1, 7) if difference else (2, 6))


@pytest.mark.parametrize("biased", [False, True])
def test_key_norms_are_summed_over_passes_biases_included(biased):
    attention = redealt(Redealing(), LayerLayout.from_labels([0, 1]))
    k = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [0.0, 0.0]]])  # [G, d, D]
    bias = torch.tensor([[0.0, 5.0], [1.0, 1.0]]) if biased else None
    attention.weights = lambda: SimpleNamespace(k=k, k_bias=bias)
    tokens = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])  # keys (1, 4), (3, 0) of the first head, (3, 0), (3, 0)
    for part in tokens:
        attention._collect(None, (part[None],))
    wanted = [1 + 81 + 9 + 25, 16 + 1 + 16 + 1] if biased else [1 + 16 + 9, 9 + 9]
    assert attention.energy.tolist() == wanted
    with torch.no_grad():
        attention._collect(None, (tokens,))
    assert attention.energy.tolist() == wanted, "what is only looked at does not count"


def perturbed(scale: float, layer: int = 0, step: int = 0) -> PerturbedAttention:
    attention = PerturbedAttention.__new__(PerturbedAttention)
    torch.nn.Module.__init__(attention)
    attention.scale, attention.layer, attention.step = scale, layer, step
    attention.architecture, attention.layout = SimpleNamespace(head_dim=2), LayerLayout.from_labels([0, 1, 0])
    return attention


def test_noise_is_drawn_group_by_group_and_subtracted():
    given = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))  # [windows, tokens, H d]
    (plain,), (half,) = (perturbed(scale)._perturb(None, (given,)) for scale in (1.0, 0.5))
    generator = torch.Generator().manual_seed(0)
    heads = given.view(2, 5, 3, 2)
    first, second = noise_like(heads[:, :, [0, 2]], generator), noise_like(heads[:, :, [1]], generator)
    wanted = torch.stack([first[:, :, 0], second[:, :, 0], first[:, :, 1]], 2).flatten(2)
    assert torch.allclose(plain, given - wanted, atol=1e-6) and torch.allclose(half, given - wanted / 2, atol=1e-6)
    others = [perturbed(1.0, layer, step)._perturb(None, (given,))[0] for layer, step in ((1, 0), (0, 1), (1, 1))]
    assert not any(torch.equal(plain, other) for other in others) and not torch.equal(others[0], others[1])
    with torch.no_grad():
        assert perturbed(1.0)._perturb(None, (given,)) is None


def test_what_each_method_learns_from_unless_told():
    text = (0.0, 0.0, 1.0)
    found = {name: (m.losses.kl, m.losses.hidden, m.losses.causal) for name, m in METHODS.items()}
    assert found == {name: (1.0, 1.0, 0.0) if name == "distill" else text for name in METHODS}
    assert {name for name, m in METHODS.items() if m.from_mean} == {"gqa", "wgqa", "wgqa-column", "wgqa-row"}
    assert METHODS["dgqa"].every == 300 and METHODS["dgqa-diff"].difference and not METHODS["dgqa"].difference
