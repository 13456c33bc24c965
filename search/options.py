"""Options of a search, the published recipes, and limits of the genetic search."""

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitness import FITNESSES
from grouper.calibration.calibration import Calibration
from grouper.calibration.source import TextSource, is_file_name
from grouper.errors import GrouperError
from grouper.kv_cache import BYTES, bytes_of
from grouper.layout import CACHES, HeadLayout, LayerLayout
from grouper.names import expected
from grouper.option_fields import option, same
from grouper.uptraining.options import LARGEST_SEED

if TYPE_CHECKING:
    from grouper.families.architecture import Architecture

MOST_ROWS, MOST_GENERATIONS = 100_000, 10**9  # limits of the genetic search
STAGES_2 = ("knapsack", "nsga2", "none")
ACCEPTANCES = ("fitness", "loss")
BLOCKS = ("cached", "all", "encoder", "decoder", "across")
# Defaults of the other commands.
MEASURED = "spread"  # layouts that `evaluate` measures: baselines, best stock ones and 12 along the front
MEASURED_WINDOWS = 64  # windows of text
COMPUTING = "float32"
DEMO_FOLDER = Path("grouper-demo")
# Options fixed by a published recipe. With one, the genetic search is the plain one and does not stop early.
RECIPES: dict[str, dict[str, Any]] = {
    "qcqa": {"fitness": "weight", "stage2": "nsga2", "set": ("weight.normalised=false",)},
    "asymgqa": {
        "method": ("asymgqa", "asymgqa-sym", "ward"), "fitness": "activation", "stage2": "none", "acceptance": "loss",
    },
}  # fmt: skip


@dataclass(frozen=True)
class GeneticOptions:
    """Options of the genetic search. population: rows kept. generations: largest number. patience: stop after this many
    generations without a better front (0: never).

    memetic: improve every child by its best moves and swaps; without it, the search is the papers' plain genetic
    algorithm.
    """

    population: int = 96
    generations: int = 60
    patience: int = 12
    memetic: bool = True


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search, with the names that they have on the command line; each field's help describes it. Details:

    stage2: "knapsack" is exact; with "none" all layers have one count. paper: "qcqa" is plain NSGA-II without local
    improvement, errors not normalised by layer, binary stage 2; "asymgqa" is walks guided by activation distances and
    judged by the merged model's loss, Ward clustering, uniform counts, mean merge. acceptance: "loss" is the merged
    model's on held-out calibration text. text, dataset, images: without any of these, the moments of the inputs are
    guessed from the norms' weights. sensitivity: errors become nats, from the loss on held-out calibration text after
    merging each layer alone. blocks: "cached" is all attentions if nothing is cached; "across" is the decoder's
    attention to the encoder.
    """

    method: tuple[str, ...] = option(
        ("qcqa-ac", "qcqa-ec"),
        "Search methods, comma-separated. qcqa-ec is added if none of them yields equal groups.",
        panel="Search",
        words="search.methods.registry.SEARCHED",
    )
    fitness: str = option("spectral", "Estimate of a grouping's damage.", panel="Search", words=FITNESSES)
    stage2: str = option(
        "knapsack",
        "Distribution of KV heads over layers: knapsack, nsga2 (QCQA's) or none.",
        panel="Search",
        words=STAGES_2,
    )
    paper: str | None = option(None, "Use the settings of a paper: qcqa or asymgqa.", panel="Search", words=RECIPES)
    kv_heads_multiple_of: int = option(
        1, "Only KV-head counts divisible by this, for tensor parallelism.", panel="Search"
    )
    kv_dtype: str = option("bfloat16", "Data type of the KV cache, for byte counts.", panel="Search", words=BYTES)
    population: int = option(GeneticOptions.population, "Population size of the genetic search.", panel="Search")
    generations: int = option(GeneticOptions.generations, "Most generations of the genetic search.", panel="Search")
    seed: int = option(0, "Random seed.", panel="Search")
    text: str | None = same(TextSource, "text")
    dataset: str | None = same(TextSource, "dataset")
    tokens: int = same(Calibration, "tokens")
    window: int = same(Calibration, "window")
    acceptance: str = option(
        "fitness", "Criterion for asymgqa's steps: fitness, or loss (slow).", panel="Search", words=ACCEPTANCES
    )
    set: tuple[str, ...] = option(
        (), "Set a parameter of a method, fitness or merge.", panel="Search", metavar="NAME.FIELD=VALUE", several=True
    )
    sensitivity: bool = option(
        False,
        "Distribute KV heads by measured damage: the loss on held-out text with one layer merged at a time.",
        panel="Search",
    )
    images: str | None = same(TextSource, "images")
    blocks: str = option(
        "cached",
        "Attentions to group in models with an encoder: cached (those with a KV cache), all, encoder, decoder, across.",
        panel="Search",
        words=BLOCKS,
    )

    @property
    def genetic(self) -> GeneticOptions:
        if self.paper:
            return GeneticOptions(self.population, self.generations, patience=0, memetic=False)
        return GeneticOptions(self.population, self.generations)

    def calibration(self, keep: str | os.PathLike | None = None, set_aside: bool = True) -> Calibration | None:
        """Calibration on the options' text or images; None without any. keep: folder of kept moments, read and written.
        set_aside: leave out the stretches of the text that training is judged on."""
        if not self.text and not self.dataset and not self.images:
            return None
        source = TextSource(self.text, self.dataset, images=self.images, part="learnt" if set_aside else "whole")
        return Calibration(source, self.tokens, self.window, None if keep is None else Path(keep))

    def searched(self, architecture: "Architecture") -> list[int]:
        """Numbers of the attentions to group. Raises GrouperError if the model has none of the requested kind."""
        caches = architecture.caches or ("token",) * architecture.layers
        kinds = {"encoder": ("none",), "decoder": ("token",), "across": ("source",), "all": CACHES}
        cached = tuple(c for c in ("token", "source") if c in caches)
        wanted = kinds.get(self.blocks) or cached or ("none",)
        if not (found := [layer for layer, cache in enumerate(caches) if cache in wanted]):
            raise GrouperError(f"--blocks {self.blocks}: the model has no such attention")
        return found

    def smallest(self, architecture: "Architecture") -> HeadLayout:
        """The layout with the fewest KV heads that a search can find."""
        searched, fewest = self.searched(architecture), min(architecture.uniform_counts(self.kv_heads_multiple_of))
        labels = [min(head, fewest - 1) for head in range(architecture.kv_heads)]
        grouped, whole = LayerLayout.from_labels(labels, architecture.queries_per_kv_head), architecture.whole_layer
        return architecture.layout([grouped if i in searched else whole for i in range(architecture.layers)])

    def _check_not_the_recipes(self, recipe: dict[str, Any]) -> None:
        """Raise GrouperError if an option contradicts the paper's recipe."""
        for field in (f for f in fields(self) if f.name in recipe and f.name != "set"):
            asked = getattr(self, field.name)
            if asked not in (field.default, recipe[field.name]):
                says = f"--paper {self.paper} says {field.name} {recipe[field.name]}, you say {asked}"
                raise GrouperError(f"{says}: leave one of them out")

    def check(self) -> None:
        """Raise GrouperError for invalid values. The registries check the names of methods and fitnesses."""
        if self.paper is not None and self.paper not in RECIPES:
            raise GrouperError(f"unknown paper {self.paper!r}: {expected(self.paper, RECIPES)}")
        _check_one_of("stage 2", self.stage2, STAGES_2)
        _check_one_of("acceptance", self.acceptance, ACCEPTANCES)
        _check_one_of("choice of blocks", self.blocks, BLOCKS)
        if self.population < 4 or self.generations < 1:
            asked = f"a population of {self.population} for {self.generations} generations"
            raise GrouperError(f"{asked}: expected at least 4 and 1")
        if self.population > MOST_ROWS or self.generations > MOST_GENERATIONS:
            asked = f"a population of {self.population:,} for {self.generations:,} generations"
            raise GrouperError(f"{asked}: expected at most {MOST_ROWS:,} and {MOST_GENERATIONS:,}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise GrouperError(f"seed {self.seed}: expected 0 or more, and less than 2**64")
        bytes_of(self.kv_dtype)
        if self.tokens < self.window or self.window < 2:
            asked = f"{self.tokens} tokens in windows of {self.window}"
            raise GrouperError(f"{asked}: expected at least one window of 2 tokens or more")

    def resolved(self) -> "SearchOptions":
        """The options with the paper's recipe applied and absolute paths. Raises GrouperError for invalid values; the
        registry checks the names of methods."""
        if self.fitness not in FITNESSES:
            raise GrouperError(f"unknown fitness {self.fitness!r}: {expected(self.fitness, FITNESSES)}")
        self.check()
        recipe = {} if self.paper is None else RECIPES[self.paper]
        self._check_not_the_recipes(recipe)
        recipe = {**recipe, "set": tuple(dict.fromkeys((*recipe.get("set", ()), *self.set)))}
        options = replace(self, **{"method": tuple(dict.fromkeys(self.method)), **recipe})
        if options.text and is_file_name(options.text):  # the run may be used from another folder
            options = replace(options, text=os.path.abspath(os.path.expanduser(options.text)))
        if options.images:
            options = replace(options, images=os.path.abspath(os.path.expanduser(options.images)))
        if options.acceptance == "loss" and options.calibration() is None:
            raise GrouperError("steps are judged by the merged model's loss on text: give --text or --dataset")
        if options.sensitivity and options.calibration() is None:
            raise GrouperError("--sensitivity measures layers' losses on text: give --text or --dataset")
        return options


def _check_one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise GrouperError(f"unknown {what} {value!r}: {expected(value, known)}")


@dataclass(frozen=True)
class HeldOutOptions:
    """Options for measuring before and after. evaluation: text that takes no part in calibration or training, or a
    folder of pictures."""

    evaluation: str | None = option(
        None, "Text to measure on, before and after; of a --text of 2 MiB or more some is set aside for that.",
        panel="Text", metavar="FILE",
    )  # fmt: skip
    limit: int = option(MEASURED_WINDOWS, "Most windows to measure on.", panel="Text")
