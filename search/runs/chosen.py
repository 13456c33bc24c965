"""Choice of a layout to export and of its merge, and the first facts of the export's record."""

from dataclasses import dataclass

import pandas as pd

from grouper.layout import HeadLayout
from grouper.machine import Tell
from grouper.merging import MERGES, Merge, merge_for
from grouper.refinement.options import RefinePlan
from grouper.registry import check_assignments
from search.methods.registry import ORIGINAL
from search.runs.columns import SE, called
from search.runs.folder import RunFolder
from search.runs.pareto import ParetoFront
from search.runs.picking import Picked, pick
from search.runs.record import REFINED, comparable
from search.runs.selection import Selection


@dataclass(frozen=True)
class Chosen:
    """A chosen layout. front: without measurements of other merges or other refinement. label: value in pareto.csv's
    column `merge` ("spectral+refine")."""

    front: ParetoFront
    picked: Picked
    layout: HeadLayout
    merge: Merge
    label: str


def choose_layout(
    folder: RunFolder, selection: Selection, refine: RefinePlan | None, set: tuple[str, ...], tell: Tell
) -> Chosen:
    """The selected layout with its merge."""
    front, settings = folder.front(tell), folder.settings
    check_assignments(set, MERGES)
    merge = MERGES.configured((*settings.options.set, *set)).named(selection.merge or front.own_merge)
    suffix = REFINED if refine else ""
    picked = pick(front, f"{merge.name}{suffix}", selection)
    layout = folder.layout_of(front.table[front.table["layout"] == picked.layout].iloc[0])
    fitting = merge_for(layout, merge)
    if fitting.name != merge.name:
        why = "regroups query heads too, which only averaging can follow"
        tell(f"layout {picked.layout} {why}: merged by {fitting.name}, not {merge.name}")
    return Chosen(comparable(folder, front, refine, set), picked, layout, fitting, f"{fitting.name}{suffix}")


def announce(chosen: Chosen, tell: Tell) -> None:
    picked, row = chosen.picked, chosen.picked.row
    share = f"{row['kv_ratio']:.1%} of the KV cache"
    if row.get("kv_cache"):
        share += f", kept as {row['kv_cache']}"
    if "weight_ratio" in row:  # an encoder was grouped
        share = f"{row['weight_ratio']:.1%} of the K and V weights"
    what = f"layout {picked.layout} ({row['method']}, {row['deploy']}, {share})"
    tell(f"{what}: {picked.why}")
    if picked.others:
        tell(picked.others)


def measured(front: ParetoFront, layout: int, merge: str) -> dict[str, list[float | None]]:
    """Measurements by `grouper evaluate`, (original, this layout under this merge): nats per token, perplexity,
    closeness to the original, tasks. Standard errors are in pareto.csv only."""
    table = front.table
    rows = table[(table["layout"] == layout) & (table["merge"] == merge)]
    columns = [c for c in front.measured_columns if not SE.search(c)]
    if rows.empty or rows[columns].isna().all(axis=None):
        return {}
    before, after = table[table["method"] == ORIGINAL].iloc[0], rows.iloc[0]
    pairs = {c: [None if pd.isna(r[c]) else float(r[c]) for r in (before, after)] for c in columns}
    return {called(c): pair for c, pair in pairs.items() if pair[1] is not None}
