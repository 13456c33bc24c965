"""Registry of methods that find groupings. To add one, write a file here with a subclass of Method and add an entry
below."""

from dataclasses import replace
from typing import TYPE_CHECKING

from fitness import FITNESSES
from grouper.errors import GrouperError
from grouper.families.architecture import Architecture
from grouper.merging import MERGES
from grouper.names import expected
from grouper.registry import Named, Registry, check_assignments
from search.methods.published import PUBLISHED
from search.options import SearchOptions

if TYPE_CHECKING:
    from search.methods.method import Method

BASELINES = (
    Named("neighbour", "search.methods.baselines.Neighbour"),
    Named("random", "search.methods.baselines.Random"),
)  # part of every run
METHODS: "Registry[Method]" = Registry(
    "method",
    Named("qcqa-ac", "search.methods.qcqa.QCQA"),
    Named("qcqa-ec", "search.methods.qcqa.QCQA", equal_groups=True),
    Named("exact", "search.methods.exact.Exact"),
    Named("asymgqa", "search.methods.asymgqa.AsymGQA"),
    Named("asymgqa-sym", "search.methods.asymgqa.AsymGQA", equal_groups=True),
    Named("ward", "search.methods.ward.Ward"),
    *PUBLISHED,
    *BASELINES,
)
SEARCHED = [name for name in METHODS if name not in [one.name for one in BASELINES]]  # names that --method accepts
ORIGINAL = "original"  # name of the unchanged model in the CSV


def baselines() -> list[str]:
    """Names of the baseline methods."""
    return [name for name, method in METHODS.items() if method.baseline]


def not_found() -> list[str]:
    """Names in the column `method` of layouts that no search found: the original and the baselines."""
    return [ORIGINAL, *baselines()]


def with_equal_groups(options: SearchOptions) -> SearchOptions:
    """The options with a method added that finds equal groups, if none of the methods does and no paper's recipe is
    used."""
    known = [METHODS[name] for name in options.method if name in METHODS]
    if options.paper or any(method.gives_equal_groups for method in known):
        return options
    first = next(name for name, method in METHODS.items() if method.gives_equal_groups)
    return replace(options, method=(*options.method, first))


def methods_of(options: SearchOptions, architecture: Architecture) -> "list[Method]":
    """The requested methods with their parameters, and the baselines. Raises GrouperError for an unknown method, for
    one that cannot take this model, and for parameters that belong to nothing."""
    check_assignments(options.set, METHODS, FITNESSES, MERGES)
    methods = METHODS.configured(options.set)
    for name in options.method:
        if name not in methods:
            raise GrouperError(f"unknown method {name!r}: {expected(name, methods)}, several with commas between")
        if methods[name].needs_text and options.calibration() is None:
            raise GrouperError(f"the {name} method goes by norms of keys on text: give --text or --dataset")
        methods[name].check(architecture)
    return [methods[name] for name in dict.fromkeys([*options.method, *baselines()])]
