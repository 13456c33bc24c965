"""Candidates of types without an entry, each made once."""

import pytest

from grouper.families.derived.candidate import Candidate, derive
from grouper.families.derived.classes import class_of
from grouper.families.derived.small import full_settings
from grouper.families.derived.survey_one import NEEDED


@pytest.fixture(scope="session")
def candidates():
    """candidates("arcee"): the family that is derived, not yet proved. Skips types that transformers lacks."""
    from transformers import CONFIG_MAPPING

    made: dict[str, Candidate] = {}

    def get(model_type: str) -> Candidate:
        if model_type not in CONFIG_MAPPING:
            pytest.skip(f"the installed transformers has no {model_type}")
        if model_type not in made:
            settings = {**NEEDED.get(model_type, {}), "model_type": model_type}
            made[model_type] = derive(class_of(model_type), *full_settings(model_type, settings))
        return made[model_type]

    return get
