"""Table bounds.csv of a run: errors of its layouts, layer by layer, beside the least errors that the same bytes allow
(fitness.joint)."""

from dataclasses import asdict, dataclass

import pandas as pd

from fitness.joint import LayerBounds
from grouper.compress import Regrouper
from grouper.errors import GrouperError
from grouper.families.architecture import Architecture
from grouper.outputs import write_text
from grouper.progress import Progress, no_progress
from grouper.schema import Row
from search.methods.registry import not_found
from search.run import digest_of_text
from search.runs.folder import RunFolder, table_of
from search.runs.picking import representative

NAME = "bounds.csv"
ANY = "any linear maps"
SERIES = {
    "K": {"k": "merged, plane by plane", "k_group": f"{ANY} in a group", "k_layer": f"{ANY}, one cache a layer"},
    "V": {"v": "merged", "v_layer": f"{ANY}, one cache a layer"},
}  # columns of bounds.csv, and their labels


@dataclass(frozen=True)
class BoundsRow(Row):
    """A row of bounds.csv. k to v_layer: as in fitness.joint. merged, refined: error of the layer's output before and
    after refinement, as in refined.csv; None if the layout was not refined."""

    layout: int
    layer: int
    k: float
    k_group: float
    k_layer: float
    v: float
    v_layer: float
    merged: float | None = None
    refined: float | None = None


def read_bounds(folder: RunFolder) -> pd.DataFrame:
    """The table that write_bounds wrote; empty if there is none."""
    return table_of(folder.path / NAME, BoundsRow)


def write_bounds(folder: RunFolder, progress: Progress = no_progress, numbers: list[int] | None = None) -> None:
    """Compute the bounds of a run's layouts and write bounds.csv. numbers: the layouts (default: those of
    `shown_layouts`). Reads the model's weights, and the run's text unless its moments are kept. Raises GrouperError."""
    settings = folder.settings
    checkpoint = settings.open_checkpoint()
    regrouper = Regrouper(checkpoint, settings.calibration(), kept=folder.kept_tokens(), found=folder.moments)
    if digest_of_text(regrouper, settings.options) != settings.text_digest:
        name = regrouper.calibrated_on.source.name
        raise GrouperError(
            f"{name} changed since the run was searched: the bounds need the text that it was searched with"
        )
    layouts = {number: folder.layout(number) for number in numbers or shown_layouts(folder)}
    refined, a = folder.read_refined(), Architecture.of(checkpoint.config)
    found: list[BoundsRow] = []
    for layer in range(a.layers):
        bounds = LayerBounds(a.read(checkpoint, layer), regrouper.moments_of(layer))
        for number, layout in layouts.items():
            before, after = _output_errors(refined, number, layer)
            of_layer = asdict(bounds.of(layout.layers[layer]))
            found.append(BoundsRow(number, layer, **of_layer, merged=before, refined=after))
        progress(layer + 1, a.layers, "bounding errors")
    table = pd.DataFrame([vars(row) for row in sorted(found, key=lambda row: (row.layout, row.layer))])
    write_text(folder.path / NAME, table.to_csv(index=False, lineterminator="\n"))


def shown_layouts(folder: RunFolder) -> list[int]:
    """Layouts whose bounds are worth their time: the one that an export at half of the cache takes, the best one of
    each size with equal groups, and refined ones. Raises GrouperError if the run has none that the spectral merge can
    merge."""
    front = folder.front()
    table = front.table[~front.table["method"].isin(not_found())]
    stock = table[table["deploy"] == "stock"].sort_values(["error", "layout"]).drop_duplicates("kv_ratio")
    asked = {int(representative(front)["layout"]), *stock["layout"], *folder.read_refined()["layout"]}
    numbers = sorted(int(n) for n in asked if n in set(front.table["layout"]) and _is_merged(folder, int(n)))
    if not numbers:
        raise GrouperError(f"{folder.path} has no layout that groups K and V alike: there is nothing to bound")
    return numbers


def _is_merged(folder: RunFolder, number: int) -> bool:
    """Whether the spectral merge can follow the layout: K and V alike, query heads with their own KV heads."""
    layout = folder.layout(number)
    return not layout.only_mean and all(layer.is_shared for layer in layout.layers)


def _output_errors(refined: pd.DataFrame, number: int, layer: int) -> tuple[float | None, float | None]:
    """Error of the layer's output under this layout, before and after its last refinement."""
    rows = refined[(refined["layout"] == number) & (refined["layer"] == layer)]
    return (None, None) if rows.empty else (float(rows.iloc[-1]["before"]), float(rows.iloc[-1]["after"]))
