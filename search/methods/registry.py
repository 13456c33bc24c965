"""The registry of ways to find groupings. A new method is a file here with a subclass of Method, and an entry below."""

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
)  # which every run has
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
SEARCHED = [name for name in METHODS if name not in [one.name for one in BASELINES]]  # what one may ask for
ORIGINAL = "original"  # what the CSV calls the model as it came


def baselines() -> list[str]:
    """The names of the methods that are there to be compared with."""
    return [name for name, method in METHODS.items() if method.baseline]


def not_found() -> list[str]:
    """What the column `method` says of layouts that no search found: the original and the baselines."""
    return [ORIGINAL, *baselines()]


def with_equal_groups(options: SearchOptions) -> SearchOptions:
    """A run always has the best equal-size layouts, unless a paper's recipe says otherwise."""
    known = [METHODS[name] for name in options.method if name in METHODS]
    if options.paper or any(method.gives_equal_groups for method in known):
        return options
    first = next(name for name, method in METHODS.items() if method.gives_equal_groups)
    return replace(options, method=(*options.method, first))


def methods_of(options: SearchOptions, architecture: Architecture) -> "list[Method]":
    """The methods that were asked for, with their parameters, and the baselines. Raises GrouperError for one that is
    unknown or cannot take this model, and for parameters that nothing has."""
    check_assignments(options.set, METHODS, FITNESSES, MERGES)
    methods = METHODS.configured(options.set)
    for name in options.method:
        if name not in methods:
            raise GrouperError(f"unknown method {name!r}: {expected(name, methods)}, several with commas between")
        if methods[name].needs_text and options.calibration() is None:
            raise GrouperError(f"the {name} method goes by norms of keys on text: give --text or --dataset")
        methods[name].check(architecture)
    return [methods[name] for name in dict.fromkeys([*options.method, *baselines()])]
