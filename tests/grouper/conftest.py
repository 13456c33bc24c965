"""One model of each family, made once."""

from pathlib import Path

import pytest
from family_samples import SAMPLES, make


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    made = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make(tmp_path_factory.mktemp(name), *SAMPLES[name])
        return made[name]

    return get
