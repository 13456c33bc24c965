"""Every family, through everything."""

import pytest
import torch
from family_samples import (
    EQUAL,
    RAGGED,
    SAMPLES,
    UNEQUAL,
    check_identity,
    check_planted,
    check_reference,
    check_refined,
    layout_for,
)

from grouper import Architecture, Checkpoint
from grouper.calibration.moments import collect_moments
from grouper.export.classes import CLASSES
from grouper.families.decoders import FAMILIES
from grouper.families.encoders import ENCODERS
from grouper.families.inspection import inspect
from grouper.merging.folding import augmented
from grouper.running.in_memory import InMemoryModel


def test_every_family_has_a_sample():
    encoders = {family.model_type for family in ENCODERS}  # see test_encoders.py
    assert {family for family, _ in SAMPLES.values()} == set(FAMILIES) - encoders


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("merge", ["mean", "spectral"])
def test_the_identity_grouping_is_the_original(samples, tmp_path, prompt, name, merge):
    check_identity(samples(name), tmp_path, prompt, merge)


@pytest.mark.parametrize("name", SAMPLES)
def test_half_the_heads_are_the_index_gather_reference_and_generate(samples, tmp_path, prompt, name):
    rows = {"stock": EQUAL, "padded": UNEQUAL, "ragged": RAGGED}
    check_reference(samples(name), tmp_path, prompt, {kind: layout_for(samples(name), r) for kind, r in rows.items()})


@pytest.mark.parametrize("name", SAMPLES)
def test_inspect_says_what_exports_there_are(samples, name):
    """What the table of families says without a layout is what the classes answer to some layout."""
    checkpoint = Checkpoint.open(samples(name))
    a = Architecture.of(checkpoint.config)
    layouts = [layout_for(samples(name), rows) for rows in (EQUAL, UNEQUAL, RAGGED)]
    takes = [
        kind
        for (kind, export_class), layout in zip(CLASSES.items(), layouts)
        if export_class.refusal(checkpoint, a, layout, max_padding=1.0) is None
    ]
    assert inspect(checkpoint).export_classes == takes


@pytest.mark.parametrize("name", SAMPLES)
def test_a_planted_grouping_is_found_and_lossless(samples, tmp_path, prompt, name):
    heads = Architecture.of(Checkpoint.open(samples(name)).config).kv_heads
    generator = torch.Generator().manual_seed(3)
    check_planted(
        samples(name), tmp_path, prompt, [(torch.randperm(heads, generator=generator) // 2).tolist() for _ in range(2)]
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_search_spectral_merge_refinement_export_reload(samples, tmp_path, prompt, name):
    windows = torch.randint(2, 199, (12, 16), generator=torch.Generator().manual_seed(0))
    check_refined(
        samples(name), tmp_path, prompt, [layout_for(samples(name), rows) for rows in (RAGGED, EQUAL)], windows
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_moments_are_of_what_the_heads_read(samples, name):
    """Keys by hook on the real module are keys by the weights that we read, fused or not, biases included."""
    checkpoint = Checkpoint.open(samples(name))
    model = InMemoryModel(checkpoint)
    windows = torch.randint(2, 199, (3, 16), generator=torch.Generator().manual_seed(0))
    for layer, moments in enumerate(collect_moments(model, windows)):
        attention = model.architecture.read(checkpoint, layer)
        k = augmented(attention.projection("k"))
        expected = torch.einsum("gdx,xy,hdy->gh", k, moments.second_moment, k) * windows.numel()
        assert torch.allclose(moments.keys.sum(0).double(), expected, rtol=1e-4, atol=1e-3)
