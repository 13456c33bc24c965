"""Measure layouts of a model with an encoder."""

from functools import cached_property

import numpy as np

from fitness.example_closeness import Columns, OriginalOfExamples, closeness_on_examples
from grouper.attention import Merged
from grouper.layout import HeadLayout
from search.columns import JUDGES
from search.meter import Meter


class ExampleMeter(Meter):
    """As a Meter, on Examples instead of windows of text."""

    @cached_property
    def originals(self) -> dict[str, OriginalOfExamples]:
        return {name: OriginalOfExamples.of(self.regrouper.model, one) for name, one in self.texts.items()}

    def is_missing(self, row: dict) -> bool:
        return all(np.isnan(row.get(column, np.nan)) for column in JUDGES)

    def of_original(self) -> Columns:
        return on_several({name: original.columns for name, original in self.originals.items()})

    def of_layout(self, layout: HeadLayout, merged: Merged) -> Columns:
        model = self.regrouper.model
        found = {n: closeness_on_examples(model, one, layout, merged) for n, one in self.originals.items()}
        return on_several(found)


def on_several(found: dict[str, Columns]) -> Columns:
    """Of one source as it is; of several their mean, errors independent, and each with its name behind it."""
    if list(found) == [""]:
        return found[""]
    values: Columns = {}
    for column in next(iter(found.values())):
        each = np.array([columns[column] for columns in found.values()])
        values[column] = float(np.sqrt((each**2).sum()) / len(each) if column.endswith("_se") else each.mean())
    if "nll" in values:
        values["perplexity"] = float(np.exp(min(values["nll"], 700)))
    return values | {f"{column}:{name}": v for name, columns in found.items() for column, v in columns.items()}
