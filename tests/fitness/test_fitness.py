from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_layers import small_attention

from fitness import FITNESSES, PairwiseFitness, calibrated_errors
from fitness.activation import Activation
from fitness.spectral import Spectral
from fitness.weight import Weight
from grouper import GrouperError
from grouper.attention import Attention
from grouper.calibration.input_moments import AssumedInputs, InputMoments, MeasuredInputs
from grouper.layout import Grouping, LayerLayout
from grouper.merging import MEAN, MERGES


def by_definition(a: Attention, labels) -> float:
    """Sum over groups and heads of |W - mean|^2, K and V, biases as a column, over the energy of all heads."""
    error = energy = 0.0
    for weight, bias in ((a.k, a.k_bias), (a.v, a.v_bias)):
        heads = torch.cat([weight, bias[..., None]], -1).double()
        energy += (heads**2).sum().item()
        for g in set(labels):
            members = heads[[i for i, x in enumerate(labels) if x == g]]
            error += ((members - members.mean(0)) ** 2).sum().item()
    return error / energy


partitions = st.lists(st.integers(0, 5), min_size=6, max_size=6)


@given(st.integers(0, 99), partitions)
@settings(max_examples=60)
def test_the_gram_form_is_the_definition(seed, labels):
    a = small_attention(seed)
    fitness = FITNESSES["weight"].tables(a)
    assert np.isclose(fitness.errors(np.array([labels]))[0], by_definition(a, labels), rtol=1e-6)
    groups = [tuple(i for i, x in enumerate(labels) if x == g) for g in sorted(set(labels))]
    assert np.isclose(fitness.group_errors(groups).sum(), by_definition(a, labels), rtol=1e-6)


@given(st.integers(0, 99), partitions, st.permutations(range(6)))
@settings(max_examples=60)
def test_renaming_groups_changes_nothing(seed, labels, names):
    fitness = FITNESSES["weight"].tables(small_attention(seed))
    renamed = [names[x] for x in labels]
    assert fitness.errors(np.array([labels])) == fitness.errors(np.array([renamed]))


@given(st.integers(0, 99), partitions, st.integers(0, 5), st.integers(0, 5))
@settings(max_examples=60)
def test_joining_two_groups_never_costs_less(seed, labels, a, b):
    fitness = FITNESSES["weight"].tables(small_attention(seed))
    before, after = fitness.errors(np.array([labels, [a if x == b else x for x in labels]]))
    assert after >= before - 1e-12


def test_all_heads_alone_cost_nothing_and_one_group_the_most():
    fitness = FITNESSES["weight"].tables(small_attention(1))
    assert fitness.errors(np.arange(6)[None])[0] == 0
    assert 0 < fitness.errors(np.zeros((1, 6), int))[0] <= 1


def test_copies_cost_nothing():
    a = small_attention(2, bias=False)
    a.k[3], a.v[3] = a.k[0], a.v[0]
    assert FITNESSES["weight"].tables(a).group_errors([(0, 3)])[0] == 0


def test_the_papers_own_error_is_not_normalised():
    a = small_attention(3)
    labels = np.array([[0, 0, 1, 1, 2, 2]])
    energy = sum(((torch.cat([w, b[..., None]], -1)) ** 2).sum().item() for w, b in ((a.k, a.k_bias), (a.v, a.v_bias)))
    assert np.isclose(
        Weight(normalised=False).tables(a).errors(labels)[0],
        FITNESSES["weight"].tables(a).errors(labels)[0] * energy,
        rtol=1e-5,
    )


def test_large_populations_are_scored_in_chunks_alike():
    rng = np.random.default_rng(0)
    fitness = PairwiseFitness.from_gram(np.cov(rng.normal(size=(64, 90))))
    labels = rng.integers(0, 64, (3000, 64))
    assert np.allclose(
        fitness.errors(labels)[::500], [fitness.errors(row[None])[0] for row in labels[::500]], rtol=1e-12
    )


def test_activation_distances_are_one_minus_the_cosine_of_outputs():
    a = small_attention(5)
    x = torch.randn(300, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ones = torch.cat([x, torch.ones(300, 1, dtype=torch.float64)], 1)
    fitness = FITNESSES["activation"].tables(a, MeasuredInputs(ones.T @ ones / 300, 300))
    for i, j in ((0, 1), (2, 5)):
        distances = []
        for weight, bias in ((a.k, a.k_bias), (a.v, a.v_bias)):
            out = torch.einsum("tx,hdx->htd", x, weight.double()) + bias.double()[:, None]
            distances.append(1 - torch.cosine_similarity(out[i].flatten(), out[j].flatten(), dim=0).item())
        assert np.isclose(fitness.distance[i, j], sum(distances) / 2, rtol=1e-9)


def moments(seed: int = 1) -> tuple[torch.Tensor, InputMoments]:
    x = torch.randn(300, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * torch.logspace(
        1, -1, 12
    )
    ones = torch.cat([x, torch.ones(300, 1, dtype=torch.float64)], 1)
    return x, MeasuredInputs(ones.T @ ones / 300, 300)


@given(partitions)
@settings(max_examples=20, deadline=None)
def test_the_activation_error_is_the_change_of_outputs_on_text(labels):
    a, (x, inputs) = small_attention(6), moments()
    expected = 0.0
    for weight, bias in ((a.k, a.k_bias), (a.v, a.v_bias)):
        out = torch.einsum("tx,hdx->htd", x, weight.double()) + bias.double()[:, None]
        error = 0.0
        for g in set(labels):
            members = out[[i for i, label in enumerate(labels) if label == g]]
            error += ((members - members.mean(0)) ** 2).sum().item()
        expected += error / (out**2).sum().item()
    assert np.isclose(FITNESSES["activation"].tables(a, inputs).errors(np.array([labels]))[0], expected, rtol=1e-6)


@given(partitions)
@settings(max_examples=20, deadline=None)
def test_the_errors_of_k_and_v_alone_add_up(labels):
    a, (_, inputs) = small_attention(7), moments()
    for fitness in FITNESSES.values():
        whole, k, v = (fitness.tables(a, inputs, part).errors(np.array([labels]))[0] for part in ("kv", "k", "v"))
        assert np.isclose(whole, k + v, rtol=1e-9, atol=1e-12), fitness.name


@pytest.mark.parametrize("fitness", [Weight(), Weight(normalised=False), Activation()])
def test_the_error_of_any_layout_is_the_fitness_where_tables_score_it(fitness):
    a, (_, inputs) = small_attention(8), moments()
    labels = [0, 1, 0, 2, 1, 0]
    score = fitness.tables(a, inputs).errors(np.array([labels]))[0]
    assert np.isclose(fitness.error_of_any_layout(a, LayerLayout.from_labels(labels), inputs), score, rtol=1e-9)


def test_sharing_queries_adds_their_own_error():
    a, (_, inputs) = small_attention(9), moments()
    own, shared = Grouping.from_labels(range(6)), Grouping.from_labels([0, 0, 1, 1, 2, 2])
    for name in ("weight", "activation"):
        error = FITNESSES[name].error_of_any_layout(a, LayerLayout(own, own, shared), inputs)
        assert (
            np.isclose(
                error, FITNESSES[name].tables(a, inputs, part="q").errors(np.array([[0, 0, 1, 1, 2, 2]]))[0], rtol=1e-9
            )
            and error > 0.1
        )


def grouped_attention(seed: int = 12) -> tuple[Attention, InputMoments]:
    """8 query heads over 4 KV heads."""
    from random_layers import random_attention, random_moments

    return random_attention(seed), random_moments(seed)


@pytest.mark.parametrize("fitness", [Weight(), Weight(normalised=False), Activation()])
def test_the_error_of_any_layout_counts_kv_heads_not_their_readers(fitness):
    a, inputs = grouped_attention()
    labels = [0, 1, 0, 1]
    score = fitness.tables(a, inputs).errors(np.array([labels]))[0]
    assert np.isclose(fitness.error_of_any_layout(a, LayerLayout.from_labels(labels, 2), inputs), score, rtol=1e-9)


def test_shared_queries_are_followed():
    """The error with shared query projections is that of the same layer with each head's copy written out."""
    a, (_, inputs) = small_attention(10, bias=False), moments()
    a.planes = torch.tensor([[0, 2], [1, 3]])
    kv, q = Grouping.from_labels([0, 0, 1, 1, 2, 2]), Grouping.from_labels([0, 1, 2, 0, 1, 2])
    shared, plain = LayerLayout(kv, kv, q), LayerLayout.shared(kv)
    merged = MEAN.merge(a, shared)
    written_out = replace(merged, q=merged.q[[0, 1, 2, 0, 1, 2]])
    expected = calibrated_errors(a, written_out, plain, inputs)
    assert calibrated_errors(a, merged, shared, inputs) == pytest.approx(expected, rel=1e-12)
    assert expected != pytest.approx(calibrated_errors(a, MEAN.merge(a, plain), plain, inputs), rel=1e-3)


def test_the_reduced_error_of_v_is_exact_where_no_direction_is_left_out():
    """With two rows a head, two directions of each are all there are."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(6, 2, 9, generator=generator) for _ in range(3))
    a = Attention(q, k, v, torch.randn(9, 6, 2, generator=generator))
    inputs = AssumedInputs.from_norm(torch.rand(9, generator=generator), None, 9)
    groups = [(0, 1), (0, 2, 4), (1, 2, 3, 5), tuple(range(6))]
    exact = Spectral(screen_rows=1).tables(a, inputs)
    exact, reduced = exact.group_errors(groups), exact.screen.group_errors(groups)
    assert np.allclose(exact, reduced, rtol=1e-9) and (exact > 0.01).all()


@pytest.mark.parametrize("fitness", [f for f in FITNESSES.values() if f.needs_moments], ids=lambda f: f.name)
def test_without_what_enters_the_layer_there_is_no_error(fitness):
    a, layout = small_attention(11), LayerLayout.from_labels([0, 0, 1, 1, 2, 2])
    for ask in (fitness.tables, fitness.pairs, lambda a, _: fitness.error_of_any_layout(a, layout, None)):
        with pytest.raises(GrouperError, match=f"the {fitness.name} fitness asks what enters the layer"):
            ask(a, None)


@pytest.mark.parametrize("fitness", FITNESSES.values(), ids=FITNESSES)
def test_an_entry_says_what_it_is_and_knows_its_parts(fitness):
    a, (_, inputs) = small_attention(11), moments()
    assert fitness.paper and fitness.own_merge in MERGES and set(fitness.exact_in) <= {None, "head", "all"}
    assert isinstance(fitness.pairs(a, inputs, "q"), PairwiseFitness)
    for part in ("x", "", "kvq"):
        with pytest.raises(GrouperError, match="unknown part"):
            fitness.tables(a, inputs, part)
    with pytest.raises(GrouperError, match="unknown part 'cuda'"):
        fitness.tables(a, inputs, "cuda")


@pytest.mark.parametrize("fitness", FITNESSES.values(), ids=FITNESSES)
def test_a_fitness_is_the_error_of_its_own_merge(fitness):
    """Zero for heads alone, names of groups do not matter, groups add up, and a head twice costs nothing to share."""
    a, inputs = grouped_attention()
    a.k[2], a.v[2], a.k_bias[2], a.v_bias[2] = a.k[0], a.v[0], a.k_bias[0], a.v_bias[0]
    tables = fitness.tables(a, inputs)
    alone, named, renamed = tables.errors(np.array([[0, 1, 2, 3], [0, 1, 1, 0], [5, 2, 2, 5]]))
    assert alone == 0 and named == renamed > 0.01 and tables.heads == 4
    assert np.isclose(tables.group_errors([(0, 3), (1, 2)]).sum(), named, rtol=1e-9)
    assert tables.group_errors([(0, 2)])[0] == pytest.approx(0, abs=1e-9)


def test_shared_queries_are_followed_in_any_order():
    a = small_attention(10, bias=False)
    a.planes = torch.tensor([[0, 2], [1, 3]])
    inputs = AssumedInputs.from_norm(torch.rand(12, generator=torch.Generator().manual_seed(0)), None, 12)
    order = [0, 1, 2, 2, 0, 1]
    kv, q = Grouping.from_labels([0, 0, 1, 1, 2, 2]), Grouping.from_labels(order)
    merged = MEAN.merge(a, LayerLayout(kv, kv, q))
    expected = calibrated_errors(a, replace(merged, q=merged.q[order]), LayerLayout.shared(kv), inputs)
    assert calibrated_errors(a, merged, LayerLayout(kv, kv, q), inputs) == pytest.approx(expected, rel=1e-12)


def test_heads_that_differ_by_rounding_cost_nothing():
    near = 1 - 2**-52
    assert PairwiseFitness.from_gram(np.array([[1, near], [near, 1]])).group_errors([(0, 1)])[0] == 0


def test_the_screen_sees_each_head_in_its_own_leading_directions():
    """Three of six directions a head: what the group's best six directions within those leave of its energy."""
    from random_layers import random_attention, random_moments

    exact = Spectral(screen_rows=12).tables(random_attention(1), random_moments(1), "v")
    d, heads, table = 6, 4, exact.tables.v
    assert exact.screen.kept(heads) == 3
    basis = torch.zeros(heads * d, heads * 3, dtype=torch.float64)
    for h in range(heads):
        own = slice(h * d, (h + 1) * d)
        basis[own, 3 * h : 3 * h + 3] = torch.linalg.eigh(table[own, own])[1][:, -3:]
    held = torch.linalg.eigvalsh(basis.T @ table @ basis)[-d:].sum()
    expected = float((table.trace() - held) / table.trace())
    assert np.isclose(exact.screen.group_errors([(0, 1, 2, 3)])[0], expected, rtol=1e-6)


def test_across_to_an_encoder_shared_queries_are_scored_on_what_queries_read():
    """K and V by the source's moments, q by the decoder's: changes of outputs over their energy, written out."""
    a, (source, inputs), (stream, _) = small_attention(14), moments(1), moments(2)
    stream = stream.flip(1)  # other directions are strong
    ones = torch.cat([stream, torch.ones(300, 1, dtype=torch.float64)], 1)
    inputs = replace(inputs, queries=MeasuredInputs(ones.T @ ones / 300, 300))
    labels = [0, 0, 1, 1, 2, 2]
    layout = LayerLayout(Grouping.from_labels(labels), Grouping.from_labels(labels), Grouping.from_labels([0, 1] * 3))
    shares = {}
    for kind, x, groups in (("k", source, labels), ("v", source, labels), ("q", stream, [0, 1] * 3)):
        weight, bias = getattr(a, kind).double(), getattr(a, f"{kind}_bias").double()
        out = torch.einsum("tx,hdx->htd", x, weight) + bias[:, None]
        groups = torch.tensor(groups)
        mean = torch.stack([out[groups == groups[h]].mean(0) for h in range(6)])
        shares[kind] = float((out - mean).square().sum() / out.square().sum())
    assert FITNESSES["activation"].error_of_any_layout(a, layout, inputs) == pytest.approx(sum(shares.values()))
    q = FITNESSES["activation"].tables(a, inputs, "q").errors(np.array([[0, 1] * 3]))[0]
    assert q == pytest.approx(shares["q"])
    kv = FITNESSES["activation"].tables(a, inputs).errors(np.array([labels]))[0]
    assert kv == pytest.approx(shares["k"] + shares["v"])


def test_a_heads_distance_to_nothing_is_one():
    from fitness.weight import cosine_distance

    gram = np.array([[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert cosine_distance([gram])[0].tolist() == [0, 0, 1] and cosine_distance([gram])[2, 1] == 1
    assert cosine_distance([gram, np.eye(3)])[0, 1] == 0.5, "the mean over tables"


def test_surrogates_factors_come_from_sampled_groups():
    """For pairs half of the sum over both orders is exact; for all heads at once, too."""
    from random_layers import random_attention, random_moments

    exact = Spectral(screen_rows=12).tables(random_attention(3), random_moments(3))
    groups = [(0, 1), (1, 3), (0, 1, 2, 3)]
    assert np.allclose(exact.surrogate.group_errors(groups), exact.screen.group_errors(groups), rtol=1e-9)
    assert exact.screen.kept(2) == 6 and exact.screen.kept(4) == 3


def test_keys_alone_are_ks_part_over_its_energy():
    from random_layers import random_attention, random_moments

    attention, inputs = random_attention(4, 4), random_moments(4)
    whole, k = (Spectral().tables(attention, inputs, part) for part in ("kv", "k"))
    groups = [(0, 1), (0, 2, 3)]
    assert np.allclose(whole.of_k.group_errors(groups), k.group_errors(groups), rtol=1e-12)
