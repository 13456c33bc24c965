"""The words that --help lists are those that there are."""

from fitness import FITNESSES
from grouper.export.classes import ASKED
from grouper.export.formats import FORMATS
from grouper.kv_cache import BYTES
from grouper.merging import MERGES
from grouper.refinement.options import SCOPES
from grouper.uptraining.methods import METHODS as WAYS_TO_TRAIN
from grouper.uptraining.options import NEW_WEIGHTS
from search.commands.choices import CHOICES, choices_of, completing, listed
from search.methods.registry import METHODS, baselines
from search.options import ACCEPTANCES, BLOCKS, RECIPES, STAGES_2
from search.report.pictures import FORMATS as PICTURE_FORMATS


def test_choices_are_what_registries_hold():
    known = {
        "method": set(METHODS) - set(baselines()), "fitness": FITNESSES, "stage2": STAGES_2, "paper": RECIPES,
        "acceptance": ACCEPTANCES, "blocks": BLOCKS, "merge": MERGES, "deploy": ASKED, "format": FORMATS,
        "kv_dtype": BYTES, "scope": SCOPES, "train": NEW_WEIGHTS, "uptrain method": WAYS_TO_TRAIN,
        "report format": PICTURE_FORMATS,
    }  # fmt: skip
    assert {name: set(words) for name, words in CHOICES.items() if name != "tracker"} == {
        name: set(words) for name, words in known.items()
    }


def test_a_commands_own_choices_come_first():
    assert choices_of("uptrain", "method") == "uptrain method" and choices_of("search", "method") == "method"
    assert choices_of("export", "format_") == "format" and choices_of("search", "tokens") is None


def test_shells_complete_the_last_of_several_words():
    assert completing("method")("kd") == ["kdgqa"]
    assert completing("method")("ward,dgqa") == ["ward,dgqa", "ward,dgqa-diff"]
    assert listed("paper") == "qcqa or asymgqa"
