"""Record of an export in its run, and of the run in its export."""

from dataclasses import dataclass

from grouper.attention import Merged
from grouper.compress import Regrouper
from grouper.progress import Progress
from grouper.ranks import locked_by_first
from grouper.refinement.options import RefinePlan
from search.evaluation.choosing import add_rows
from search.evaluation.held_out import ReadText
from search.evaluation.layouts import fill_in, measuring_of
from search.evaluation.meter import Meter
from search.methods.registry import ORIGINAL
from search.options import COMPUTING
from search.runs.chosen import Chosen, measured
from search.runs.folder import RunFolder
from search.runs.record import REFINED, comparable


@dataclass(frozen=True)
class Record:
    """Facts to record. folder: the run's. set: parameters of merges, which override the run's. command: the command
    line as typed. text: held-out text to measure on, if any. overwrite: discard measurements on other text."""

    folder: RunFolder
    chosen: Chosen
    set: tuple[str, ...] = ()
    command: str | None = None
    text: ReadText | None = None
    overwrite: bool = False

    def origin(self) -> dict:
        """Origin of the layout, for grouper.json and the model card: the run, and the commands."""
        picked, settings = self.chosen.picked, self.folder.settings
        return {
            "method": picked.row["method"], "fitness": settings.options.fitness, "error": float(picked.row["error"]),
            "layout": picked.layout, "search": settings.command, "export": self.command,
            "parameters": self.chosen.merge.parameters,
        }  # fmt: skip

    def note_refined(self, errors: list[tuple[float, float]]) -> None:
        """Write the refinement to the run. errors: of each layer, before and after."""
        self.folder.note_refined(self.chosen.picked.layout, self.chosen.label, errors)

    def measured(
        self, regrouper: Regrouper, refine: RefinePlan | None, merged: Merged, progress: Progress
    ) -> dict[str, list[float | None]]:
        """Losses of the original and of the merged layers. They are measured now and written to the run, unless the run
        has them already or no text is given."""
        front, layout = self.chosen.front, self.chosen.picked.layout
        if self.text:
            self._measure(self.text, regrouper, refine, merged, progress)
            front = comparable(self.folder, self.folder.front(), refine, self.set)
        return measured(front, layout, self.chosen.label)

    def _measure(
        self, text: ReadText, regrouper: Regrouper, refine: RefinePlan | None, merged: Merged, progress: Progress
    ) -> None:
        folder, ranks, merge = self.folder, regrouper.ranks, self.chosen.merge
        measuring = measuring_of(text.held_out.source, dict(text.texts), None, COMPUTING, self.set)
        with locked_by_first(ranks, folder.path):
            front = ranks.first_does(lambda: measuring.check(folder, folder.front(), refine, self.overwrite))
            original = int(front.table.loc[front.table["method"] == ORIGINAL, "layout"].iloc[0])
            numbers = [original, self.chosen.picked.layout]
            rows = add_rows(front, numbers, folder, merge, REFINED if refine else "")
            meter = Meter(regrouper, text.texts, None, COMPUTING)
            todo = [i for i in rows if meter.is_missing(front.table.loc[i].to_dict())]
            progress(0, len(todo), "measuring")
            fill_in(folder, front, todo, meter, lambda _: merge, refine, progress, merged)
