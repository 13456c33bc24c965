"""How caches round, by hand; what they take."""

import pytest
import torch

from grouper import GrouperError
from grouper.cache_types import CACHE_TYPES, cache_type, hadamard, q4_0, q8_0, quanto4
from grouper.kv_cache import KEPT_IN, bytes_for, bytes_of

RANDOM = torch.randn(2, 3, 5, 32, generator=torch.Generator().manual_seed(0))


def block(*values: float, size: int = 32) -> torch.Tensor:
    return torch.tensor([[*values, *[0.0] * (size - len(values))]])


def test_q4_0_of_a_known_block():
    """The value of the largest size, -16, is -8 steps of 2: so +15.9 has no step of its own left and comes to 7."""
    found = q4_0(block(-16, 15.9, 1.0, 0.9, -1.0, -1.1, 3.1), "k")[0]
    assert found[:7].tolist() == [-16, 14, 2, 0, 0, -2, 4], "halves go up: 0.5 + 8.5 is cut to 9, -0.5 + 8.5 to 8"
    assert found[7:].abs().max() == 0
    mirrored = q4_0(block(16, -15.9, 1.0), "v")[0]
    assert mirrored[:3].tolist() == [16, -14, 0], "16 / -8 is the scale: steps run downwards, 1.0 is -0.5 of them"


def test_q4_0_keeps_its_scale_in_float16():
    found = q4_0(block(-8.001), "k")[0, 0].item()
    assert found == -8 * torch.tensor(8.001 / 8).half().item() != -8.001


def test_q8_0_of_a_known_block():
    found = q8_0(block(127, -63.5, 0.49, 1.5, -126.6), "k")[0]
    assert found[:5].tolist() == [127, -64, 0, 2, -127], "halves go away from zero"


def test_blocks_do_not_see_one_another():
    """Neither blocks of a head nor tokens nor heads."""
    for rounded in (q4_0, q8_0):
        alone = rounded(RANDOM[1:, 1:2, 2:3], "k")
        assert torch.equal(rounded(RANDOM, "k")[1:, 1:2, 2:3], alone)
    two = torch.cat([block(100.0), block(0.5)], -1)[:, :48]  # blocks of 32 and 16 would do for no engine
    with pytest.raises(RuntimeError):
        q8_0(two, "k")


def test_heads_of_a_multiple_of_64_are_rotated():
    """A spike spreads over the head, and comes back: its neighbours are no longer rounded to nothing."""
    head = torch.full((1, 64), 0.5)
    head[0, 3] = 100
    turned = hadamard(64, torch.device("cpu"))
    assert torch.allclose(turned @ turned, torch.eye(64), atol=1e-6) and turned[0, 0] == 0.125
    bare = torch.cat([q8_0(head[:, :32], "k"), q8_0(head[:, 32:], "k")], -1)  # heads of 32 are not
    assert (bare[0, :3] - 0.5).abs().max() > 0.2 > 0.1 > (q8_0(head, "k") - head).abs().max()
    wide = torch.randn(1, 128, generator=torch.Generator().manual_seed(1))
    by_v = torch.cat([q4_0(wide[:, :64], "v"), q4_0(wide[:, 64:], "v")], -1)
    assert torch.equal(q4_0(wide, "v"), by_v), "V by matrices of 64"
    assert not torch.allclose(q4_0(wide, "k"), by_v), "K by the largest that divides the head"


def test_quanto_groups_lie_between_their_smallest_and_largest():
    values = torch.linspace(-1, 14, 64).view(1, 64)
    found = quanto4(values, "k")
    assert torch.allclose(found, values.round(), atol=1e-5), "15 steps of 1 from -1 on"
    pairs = torch.cat([torch.zeros(1, 32), torch.full((1, 32), 15.0)])[None]  # [1, 2 tokens, 32]
    pairs[0, 0, 0] = 0.4
    assert quanto4(pairs, "v")[0, 0, 0] == 0, "two tokens of 32 make a group, whose steps are 1"
    odd = torch.randn(1, 3, 32)
    assert quanto4(odd, "v").shape == odd.shape and torch.equal(quanto4(odd, "v")[:, :2], quanto4(odd[:, :2], "v"))
    assert torch.equal(quanto4(torch.ones(1, 2, 32), "k"), torch.ones(1, 2, 32)), "equal values divide by no zero"


@pytest.mark.parametrize("name", ["fp8-scaled", "q8_0", "q4_0", "quanto4"])
def test_zeros_stay_zeros(name):
    assert cache_type(name).rounded(torch.zeros(1, 1, 2, 64), "k").abs().max() == 0


def test_fp8_is_cut_off_unless_it_is_scaled():
    keys = torch.tensor([[[[1000.0, 1.0]]], [[[4.0, 1.0]]]])  # [2, 1, 1, 2]
    assert cache_type("fp8").rounded(keys, "k")[0].flatten().tolist() == [448, 1]
    scaled = cache_type("fp8-scaled").rounded(keys, "k")
    assert scaled.amax().item() == pytest.approx(1000), "a head's largest value is 448 of its steps"
    assert torch.equal(scaled[1], cache_type("fp8-scaled").rounded(keys[1:], "k")[0]), "a scale for each window"


def test_bits_count_scales():
    """A float16 for 32 values is half a bit a value; two 16-bit numbers for 64 as well."""
    bits = {name: kind.bits for name, kind in CACHE_TYPES.items()}
    assert (bits["q8_0"], bits["q4_0"], bits["quanto4"]) == (8 + 16 / 32, 4 + 16 / 32, 4 + 2 * 16 / 64)
    assert {name: 8 * bytes_of(name) for name in bits} == bits
    assert set(CACHE_TYPES) == set(KEPT_IN)
    assert bytes_for(3, "q4_0") == 2, "whole bytes"


def test_values_keep_their_type_and_unrounded_ones_themselves():
    half = RANDOM.bfloat16()
    for kind in CACHE_TYPES.values():
        assert kind.rounded(half, "k").dtype == torch.bfloat16
    assert torch.equal(cache_type("bfloat16").rounded(half, "k"), half)
    assert not torch.equal(cache_type("bfloat16").rounded(RANDOM, "k"), RANDOM)


def test_what_caches_do_not_take():
    cache_type("q4_0").check(64)
    cache_type("quanto4").check(80)
    for wrong, message in (
        (lambda: cache_type("q4_0").check(80), "blocks of 32 values, and heads of this model have 80"),
        (lambda: cache_type("quanto4").check(64, "alibi"), "cannot be measured with ALiBi"),
        (lambda: cache_type("q3_0"), "unknown KV cache type 'q3_0'"),
    ):
        with pytest.raises(GrouperError, match=message):
            wrong()
