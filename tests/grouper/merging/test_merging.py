"""Merges against the definition of what attention sees, with and without RoPE, and on planted models."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from normed_layers import normed_attention, tokens_and_moments
from random_layers import LABELS, ROTARY, D, G, H, calibrated_errors, d, random_attention, random_moments, with_bias
from tiny_models import SIZES, edit_weights, logits

import fitness
from fitness import FITNESSES
from fitness.spectral import Spectral as SpectralFitness
from grouper import Architecture, Checkpoint, GrouperError, Grouping, HeadLayout, LayerLayout, export
from grouper.attention import Attention
from grouper.calibration.input_moments import AssumedInputs
from grouper.calibration.moments import collect_moments
from grouper.merging import MERGES
from grouper.merging.spectral import Spectral
from grouper.running.in_memory import InMemoryModel
from search import SearchOptions, pick, search
from search.methods.qcqa import any_sizes, equal_sizes
from search.options import GeneticOptions


@pytest.mark.parametrize("across", [False, True], ids=["own", "across"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rope", ROTARY)
def test_the_fitness_is_the_calibrated_error_of_the_merge(rope, bias, across):
    attention, inputs = random_attention(1, ROTARY[rope], bias), random_moments(1, across)
    layout = LayerLayout.from_labels(LABELS, H // G)
    merged = MERGES["spectral"].before_refinement().merge(attention, layout, inputs)
    score = FITNESSES["spectral"].tables(attention, inputs).errors(np.array([LABELS]))[0]
    assert score == pytest.approx(sum(calibrated_errors(attention, merged, layout, inputs)), rel=1e-6) and score > 0.01


@pytest.mark.parametrize("across", [False, True], ids=["own", "across"])
@pytest.mark.parametrize("rope", ROTARY)
@pytest.mark.parametrize("merge", ["mean", "weighted", "spectral"])
def test_the_error_of_any_merge_is_the_definition(rope, merge, across):
    attention, inputs = random_attention(11, ROTARY[rope]), random_moments(11, across)
    layout = LayerLayout.from_labels(LABELS, H // G)
    merged = MERGES.named(merge).merge(attention, layout, inputs)
    expected = calibrated_errors(attention, merged, layout, inputs)
    assert fitness.calibrated_errors(attention, merged, layout, inputs) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["", "-column", "-row"])
@pytest.mark.parametrize("rope", ROTARY)
def test_weighted_merges_are_fitted_to_what_attention_sees(rope, kind):
    """Of V, the error attention sees is at most the mean's, and no other weights of that kind have a lower one."""
    attention, inputs = random_attention(12, ROTARY[rope]), random_moments(12)
    layout = LayerLayout.from_labels(LABELS, H // G)
    merged = MERGES.named(f"weighted{kind}").merge(attention, layout, inputs)
    mean = MERGES.named("mean").merge(attention, layout, inputs)
    best = calibrated_errors(attention, merged, layout, inputs)
    plain = calibrated_errors(attention, mean, layout, inputs)
    assert best[1] < plain[1] * (1 - 1e-6) and best[0] < plain[0] * 1.05
    v, shape = (
        with_bias(attention.v, attention.v_bias),
        {"": (2, 1, 1), "-column": (2, d, 1), "-row": (2, 1, D + 1)}[kind],
    )
    generator = torch.Generator().manual_seed(0)
    for size in (1e-4, 1e-2):
        changed = with_bias(merged.v, merged.v_bias)
        for group, sources in enumerate(layout.v.members):
            weights = size * torch.randn(shape, generator=generator, dtype=torch.float64)
            changed[group] += (weights * v[list(sources)]).sum(0)
        other = Attention(**{**vars(merged), "v": changed[..., :-1], "v_bias": changed[..., -1]})
        assert calibrated_errors(attention, other, layout, inputs)[1] > best[1]


def test_first_keeps_the_first_head_and_shared_queries_are_selected_too():
    attention, inputs = random_attention(13), random_moments(13)
    kv, q = Grouping.from_labels(LABELS, 2), Grouping.from_labels([0, 1, 1, 0, 2, 2, 3, 3])
    merged = MERGES.named("first").merge(attention, LayerLayout(kv, kv, q), inputs)
    assert torch.equal(merged.k, attention.k[:2]) and torch.equal(merged.q, attention.q[[0, 1, 4, 6]])


@pytest.mark.parametrize("across", [False, True], ids=["own", "across"])
@pytest.mark.parametrize("rope", ROTARY)
def test_no_other_merge_and_no_perturbation_is_better(rope, across):
    attention, inputs = random_attention(2, ROTARY[rope]), random_moments(2, across)
    layout = LayerLayout.from_labels(LABELS, H // G)
    merged = MERGES["spectral"].before_refinement().merge(attention, layout, inputs)
    k_best, v_best = calibrated_errors(attention, merged, layout, inputs)
    for name in MERGES:
        k, v = calibrated_errors(
            attention, MERGES.named(name).before_refinement().merge(attention, layout, inputs), layout, inputs
        )
        assert k >= k_best - 1e-9 and v >= v_best - 1e-9, name
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2, 0.1):
        for field in ("q", "k", "v", "o"):
            noise = torch.randn(getattr(merged, field).shape, generator=generator, dtype=torch.float64)
            # a shared complex factor per plane is the model class of K with RoPE: q moves only within it
            if field == "q" and attention.planes is not None:
                continue
            changed = Attention(**{**vars(merged), field: getattr(merged, field) * (1 + size * noise)})
            k, v = calibrated_errors(attention, changed, layout, inputs)
            assert k >= k_best - 1e-12 and v >= v_best - 1e-12, (field, size)


def test_rescaling_restores_the_energy_of_keys_as_heads_see_them():
    attention, inputs = random_attention(3), random_moments(3)
    layout = LayerLayout.from_labels(LABELS, H // G)
    plain, scaled = (merge.merge(attention, layout, inputs) for merge in (Spectral(rescale=False), MERGES["spectral"]))
    k = with_bias(attention.k, attention.k_bias)
    own = (k @ inputs.second_moment * k).sum((1, 2))
    for h in range(H):
        factor = (scaled.q[h] / plain.q[h]).flatten()
        assert torch.allclose(factor, factor[0].expand_as(factor)) and factor[0] >= 1 - 1e-9
        # k' as h sees it: turn the shared head by what q was turned with
        a, b = attention.planes.T
        before, after = torch.complex(attention.q[h, a], attention.q[h, b]), torch.complex(plain.q[h, a], plain.q[h, b])
        c = ((after * before.conj()).sum(-1) / before.abs().square().sum(-1)).conj()
        shared = with_bias(plain.k, plain.k_bias)[layout.k.group_of[h]]
        seen = c[:, None] * torch.complex(shared[a], shared[b])
        energy = (seen @ inputs.second_moment.to(seen.dtype) * seen.conj()).sum().real
        assert (factor[0] ** 2 * energy).item() == pytest.approx(own[h // (H // G)].item(), rel=1e-6)


@pytest.mark.parametrize("merge", ["procrustes", "spectral"])
@pytest.mark.parametrize("rope", ROTARY)
def test_heads_equal_up_to_a_free_basis_merge_without_loss(rope, merge):
    """Orthogonal bases for V and unit phases for Procrustes; general bases and any complex factor for spectral."""
    attention, inputs = (
        disguised(random_attention(4, ROTARY[rope], bias=False), orthogonal=merge == "procrustes"),
        random_moments(4),
    )
    layout = LayerLayout.from_labels(LABELS, H // G)
    merged = MERGES.named(merge).merge(attention, layout, inputs)
    assert max(calibrated_errors(attention, merged, layout, inputs)) < 1e-12
    assert FITNESSES["spectral"].tables(attention, inputs).errors(np.array([LABELS]))[0] < 1e-9
    best = {
        p.groups: p
        for p in equal_sizes(
            FITNESSES["spectral"].tables(attention, inputs), np.random.default_rng(0), GeneticOptions()
        )
    }[2]
    assert best.labels.tolist() == LABELS


def disguised(attention: Attention, orthogonal: bool) -> Attention:
    """Heads 2 and 3 become heads 0 and 1 in another basis; queries and outputs are their own."""
    g = torch.Generator().manual_seed(9)

    def basis(n):
        m = torch.randn(n, n, generator=g, dtype=torch.float64)
        return torch.linalg.qr(m)[0] if orthogonal else m

    for copy, source in ((2, 0), (3, 1)):
        attention.v[copy] = basis(d) @ attention.v[source]
        rotary = 0 if attention.planes is None else attention.planes.numel()
        if rotary:
            a, b = attention.planes.T
            factor = torch.polar(
                torch.rand(len(a), generator=g, dtype=torch.float64) + 0.5,
                torch.rand(len(a), generator=g, dtype=torch.float64) * 6,
            )
            factor = factor / factor.abs() if orthogonal else factor
            turned = factor[:, None] * torch.complex(attention.k[source, a], attention.k[source, b])
            attention.k[copy, a], attention.k[copy, b] = turned.real, turned.imag
        if rotary < d:
            attention.k[copy, rotary:] = basis(d - rotary) @ attention.k[source, rotary:]
    return attention


def test_a_planted_model_in_disguise_is_found_and_exported_without_loss(models, tmp_path, prompt):
    """MHA, heads of a pair equal up to a general V basis and complex factors of K: the logits stay."""
    generator = torch.Generator().manual_seed(5)
    labels = [(torch.randperm(8, generator=generator) % 4).tolist() for _ in range(SIZES["num_hidden_layers"])]

    def disguise(tensors):
        for layer, row in enumerate(labels):
            names = {kind: f"model.layers.{layer}.self_attn.{kind}_proj.weight" for kind in "kvo"}
            k, v = (tensors[names[kind]].view(8, 16, -1) for kind in "kv")
            for h in range(8):
                first = row.index(row[h])
                if first != h:
                    v[h] = torch.randn(16, 16, generator=generator) @ v[first]
                    factor = torch.polar(
                        torch.rand(8, generator=generator) + 0.5, torch.rand(8, generator=generator) * 6
                    )
                    turned = factor[:, None] * torch.complex(k[first, :8], k[first, 8:])
                    k[h, :8], k[h, 8:] = turned.real, turned.imag

    folder = edit_weights(models("llama"), tmp_path / "disguised", disguise)
    front = search(folder, tmp_path / "run", SearchOptions(generations=8))
    found = pick(front, "spectral", kv_ratio="1/2")
    layout = HeadLayout.from_json((tmp_path / "run" / "layouts" / f"{found.layout:04}.json").read_text())
    assert layout == HeadLayout.from_labels(labels, 8, 16) and found.row["error"] < 1e-6
    export(folder, layout, tmp_path / "out", merge="spectral")
    assert (logits(tmp_path / "out", prompt) - logits(folder, prompt)).abs().max() < 1e-4
    export(folder, layout, tmp_path / "mean", merge="mean")
    assert (logits(tmp_path / "mean", prompt) - logits(folder, prompt)).abs().max() > 0.1, (
        "a mean must not pass this test"
    )


def test_moments_are_what_enters_the_projections():
    model = InMemoryModel(Checkpoint.open("demo"))
    tokens = torch.randint(0, 4096, (3, 40), generator=torch.Generator().manual_seed(0))
    moments = list(collect_moments(model, tokens))
    seen = []
    hook = model.query_projection(2).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model.model(tokens)
    hook.remove()
    x = torch.cat([seen[0].flatten(0, 1), torch.ones(120, 1)], 1).double()
    assert moments[2].tokens == 120 and torch.allclose(moments[2].second_moment, x.T @ x / 120, rtol=1e-4, atol=1e-5)


def test_moments_without_text_are_the_norms_gain_and_bias():
    gain, bias = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0])
    assert AssumedInputs.from_norm(gain, None, 2).second_moment.diagonal().tolist() == [1.0, 4.0, 1.0]
    second = AssumedInputs.from_norm(gain, bias, 2).second_moment
    assert second.tolist() == [[1.25, 0.0, 0.5], [0.0, 4.0, 0.0], [0.5, 0.0, 1.0]]
    assert AssumedInputs.from_norm(None, None, 2).second_moment.tolist() == torch.eye(3).tolist()


def test_heads_without_queries_and_dead_heads_do_not_break_the_merge():
    attention, inputs = random_attention(6), random_moments(6)
    attention.q[0:2], attention.q_bias[0:2] = 0, 0  # KV head 0's readers ask nothing
    attention.v[1], attention.v_bias[1] = 0, 0
    attention.o[:, 4] = 0
    for merge in MERGES:
        merged = MERGES.named(merge).merge(attention, LayerLayout.from_labels(LABELS, 2), inputs)
        assert all(torch.isfinite(t).all() for t in vars(merged).values() if t is not None), merge


@pytest.mark.parametrize("merge", ["procrustes", "spectral"])
def test_a_change_of_basis_needs_readers_that_are_sources(merge):
    grouping = Grouping(((0, 1, 2), (3, 4, 5, 6, 7)), ((0, 1), (2, 3)))
    with pytest.raises(GrouperError, match="`merge=mean`"):
        MERGES.named(merge).merge(random_attention(7), LayerLayout.shared(grouping), random_moments(7))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merging_leaves_its_input_alone_and_keeps_the_dtype(merge, dtype):
    attention, inputs = random_attention(6, dtype=dtype), random_moments(6)
    before = {n: t.clone() for n, t in vars(attention).items() if t is not None}
    merged = MERGES.named(merge).merge(attention, LayerLayout.from_labels(LABELS, 2), inputs)
    assert all(torch.equal(before[n], getattr(attention, n)) for n in before)
    assert {getattr(merged, n).dtype for n in before if n != "planes"} == {dtype}


def test_select_keeps_a_head_and_prefers_the_medoid():
    attention = random_attention(8, bias=False)
    attention.k[1], attention.v[1] = attention.k[0] + attention.k[2], attention.v[0] + attention.v[2]
    attention.v[0] *= 1e-3  # a weak head is near to none
    merged = MERGES.named("select").merge(attention, LayerLayout.from_labels([0, 0, 0, 1], 2), None)
    assert torch.equal(merged.k, attention.k[[1, 3]]) and torch.equal(merged.v, attention.v[[1, 3]]), (
        "the head stays whole"
    )


def real_layer(layer: int = 3):
    checkpoint = Checkpoint.open("demo")
    architecture = Architecture.of(checkpoint.config)
    return architecture.read(checkpoint, layer), AssumedInputs.from_norm(
        *architecture.norm(checkpoint, layer), architecture.hidden_size
    )


def test_the_cheap_v_error_bounds_the_exact_one_and_orders_groups_alike():
    from scipy.stats import spearmanr

    attention, inputs = real_layer()
    rng = np.random.default_rng(0)
    groups = [tuple(sorted(rng.choice(16, 6, replace=False).tolist())) for _ in range(60)]
    exact = FITNESSES["spectral"].tables(attention, inputs)
    cheap = SpectralFitness(screen_rows=64).tables(attention, inputs).screen
    a, b = exact.group_errors(groups), cheap.group_errors(groups)
    assert (b >= a - 1e-9).all() and spearmanr(a, b).statistic > 0.95
    assert spearmanr(a, exact.surrogate.group_errors(groups)).statistic > 0.8


def test_any_sizes_are_never_worse_than_equal_sizes_and_both_beat_neighbours():
    score = FITNESSES["spectral"].tables(*real_layer())
    any_size, equal = (
        {p.groups: p.error for p in m(score, np.random.default_rng(0), GeneticOptions())}
        for m in (any_sizes, equal_sizes)
    )
    for k in (2, 4, 8):
        neighbours = score.errors(np.arange(16)[None] // (16 // k))[0]
        assert any_size[k] <= equal[k] + 1e-12 and equal[k] < neighbours
    assert math.isclose(any_size[1], score.group_errors([tuple(range(16))])[0])


def test_slow_planes_are_rows_without_rope():
    """The last ones; all that is left of the planes is merged as before, and RoPE still turns all of them."""
    attention, inputs, layout = random_attention(), random_moments(), LayerLayout.from_labels(LABELS, H // G)
    planes = attention.planes
    for slow, left in ((1, planes[:2]), (2, planes[:1]), (3, None), (9, None)):
        done = Spectral(slow=slow).merge(attention, layout, inputs)
        wanted = Spectral().merge(replace(attention, planes=left), layout, inputs)
        assert torch.equal(done.planes, planes) and all(
            torch.equal(getattr(done, name), getattr(wanted, name)) for name in ("q", "k", "v", "o", "q_bias", "k_bias")
        )
    assert Spectral(slow=2).before_refinement() == Spectral(slow=2, rescale=False)
    assert Spectral().key == {"name": "spectral", "rescale": True}, "refinements of older versions go on"
    assert Spectral(slow=2).key == {"name": "spectral", "rescale": True, "slow": 2}


def test_rows_of_slow_planes_mix_without_loss():
    """Heads that are maps of one head's rows: lossless at distance 0 as slow planes, and not otherwise."""
    attention, layout = random_attention(bias=False), LayerLayout.from_labels([0] * G, H // G)
    maps = torch.randn(G, d, d, generator=torch.Generator().manual_seed(1)).double()
    attention = replace(attention, k=maps @ attention.k[:1])
    errors = []
    for slow in (0, 3):
        done = Spectral(slow=slow, rescale=False).merge(attention, layout, random_moments())
        unturned = [replace(one, planes=None) for one in (attention, done)]
        errors.append(calibrated_errors(*unturned, layout, random_moments())[0])
    assert errors[1] < 1e-12 < 1e-3 < errors[0]


def test_norms_on_q_and_k_leave_no_slow_planes():
    attention, inputs = normed_attention("head"), tokens_and_moments()[1]
    layout = LayerLayout.from_labels(LABELS, H // G)
    plain, slow = (Spectral(slow=slow).merge(attention, layout, inputs) for slow in (0, 2))
    assert torch.equal(plain.k, slow.k) and torch.equal(plain.q, slow.q)
