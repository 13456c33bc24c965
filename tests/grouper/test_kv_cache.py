"""How large a cache is, and how many fit."""

import pytest

from grouper import GrouperError
from grouper.kv_cache import bytes_of, largest_batch


def test_nine_tenths_of_a_card_less_the_weights_hold_the_caches():
    assert largest_batch(1000, weights=500, cache_of_one=100) == 4, "900 - 500 over 100; not 0.9 * 500"
    assert largest_batch(1000, weights=500, cache_of_one=101) == 3
    assert largest_batch(1000, weights=0, cache_of_one=900) == 1 and largest_batch(1000, 0, 901) == 0
    assert largest_batch(1000, weights=950, cache_of_one=10) == 0, "never less"


def test_bytes_of_a_number():
    assert [bytes_of(n) for n in ("float32", "float16", "bfloat16", "float8", "int8")] == [4, 2, 2, 1, 1]
    with pytest.raises(GrouperError, match="unknown KV dtype 'float64'"):
        bytes_of("float64")
