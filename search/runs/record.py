"""Record of the data behind a run's measurements, which can be compared only if it is the same."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from grouper.calibration.calibration import TOKENS, WINDOW
from grouper.errors import GrouperError
from grouper.machine import Tell, no_message
from grouper.refinement.options import RefinePlan
from grouper.schema import damage_said, document, fitted, text_of
from search.methods.registry import ORIGINAL
from search.runs.folder import RunFolder
from search.runs.kept_rows import KeptRows
from search.runs.pareto import ParetoFront

FILE = "evaluation.json"
REFINED = "+refine"  # suffix of the column `merge` for refined layouts


@dataclass(frozen=True)
class Measuring:
    """Content of evaluation.json. All measurements are on one text (or several, by name), all of one task are on the
    same items, all are made with one set of parameters, and all refined layouts are refined alike.

    text, digest, windows: name of the text, digest of its tokens, shape of the tokens; None without text. tasks: number
    of items, and of examples in the context; None without tasks.
    """

    text: str | None
    digest: str | None
    windows: tuple | None
    dtype: str
    set: tuple[str, ...] = ()
    tasks: dict | None = None

    def to_data(self) -> dict:
        data = {"text": self.text, "digest": self.digest, "windows": self.windows and list(self.windows)}
        data |= {"dtype": self.dtype, **({"set": list(self.set)} if self.set else {})}
        return data if self.tasks is None else {**data, "tasks": self.tasks}

    def check(
        self,
        folder: RunFolder,
        front: ParetoFront,
        refine: RefinePlan | None,
        overwrite: bool,
        tell: Tell = no_message,
    ) -> ParetoFront:
        """Write the record, or raise GrouperError if earlier measurements were made otherwise. Earlier measurements are
        discarded with `overwrite`, or if the same text has more windows now, which is told. Returns the front without
        discarded measurements."""
        before = {} if overwrite else noted(folder)
        columns = front.measured_columns
        measured = front.table[columns].notna().to_numpy().any()
        refinement = recipe(refine) if refine else None
        if measured and overwrite:
            front.table[columns] = np.nan
            front.kept = KeptRows.none(front.table)
            front.mark()
            folder.write_front(front)
            folder.forget_measured()
        elif measured and before:
            more = self._has_more_windows(before)
            self._refuse_others(folder, before, refinement, ("digest", "windows") if more else ())
            if more:
                front.table[[c for c in columns if "," not in c]] = np.nan  # tasks are kept
                front.kept = KeptRows.none(front.table)
                front.mark()
                folder.write_front(front)
                tell(f"measured on {told_windows(before['windows'])} before, which are no part of these "
                     f"{told_windows(self.windows)}, for windows are spread over the text: it is measured again, and "
                     "what is not asked for now is forgotten")  # fmt: skip
        kept = {k: v for k, v in before.items() if k in self._of_others(before)}
        refinement = refinement or before.get("refinement")
        data = {**self.to_data(), **kept, **({"refinement": refinement} if refinement else {})}
        folder.digests.write(folder.path / FILE, json.dumps(data, indent=2) + "\n")
        return front

    def _of_others(self, before: dict) -> list[str]:
        """Names of earlier facts on which this measurement has no bearing."""
        return [
            *(("text", "digest", "windows") if self.text is None and before.get("digest") else ()),
            *(("tasks",) if self.tasks is None and before.get("tasks") else ()),
        ]

    def _has_more_windows(self, before: dict) -> bool:
        """Whether the text is the earlier one, by its name, with more windows of the same length."""
        if before.get("text") != self.text or not before.get("windows") or not self.windows:
            return False
        old, new = (shapes_of(windows) for windows in (before["windows"], self.windows))
        alike = [shape[1:] for shape in old] == [shape[1:] for shape in new]
        counts = [(a[0], b[0]) for a, b in zip(old, new)]
        return alike and all(a <= b for a, b in counts) and any(a < b for a, b in counts)

    def _refuse_others(self, folder: RunFolder, before: dict, refinement: dict | None, free: Sequence[str]) -> None:
        """Raise GrouperError if earlier measurements were made otherwise."""
        mine = json.loads(json.dumps(self.to_data()))
        skipped = {"text", "refinement", *free, *self._of_others(before)}
        skipped |= {k for k in ("digest", "windows", "tasks") if not before.get(k)}
        differing = [k for k in {*before, *mine} - skipped if before.get(k) != mine.get(k)]
        if differing:
            what = "other items of tasks" if differing == ["tasks"] else "other text, windows or parameters"
            raise GrouperError(f"{folder.path} was measured on {what}: use the same, or --overwrite to measure anew")
        refined_before = before.get("refinement")
        if refinement and refined_before and refinement != refined_before:
            again = "do the same, or --overwrite to measure anew"
            was = ", ".join(f"{what} {value}" for what, value in dict(refined_before).items())
            raise GrouperError(f"layouts of {folder.path} were refined otherwise ({was}): {again}")


@dataclass(frozen=True)
class _Noted:
    """Types of the values in evaluation.json. A measurement leaves out the facts that do not apply to it."""

    text: str | None = None
    digest: str | None = None
    windows: list[int] | list[list[int]] | None = None
    dtype: str | None = None
    set: list[str] | None = None
    tasks: dict[str, int | None] | None = None
    refinement: dict[str, str | int | float] | None = None


def noted(folder: RunFolder) -> dict[str, Any]:
    """Content of evaluation.json; empty if there is none. Raises GrouperError if it is damaged."""
    path = folder.path / FILE
    if not path.is_file():
        return {}
    with damage_said(path, "measure the run again, with --overwrite"):
        found = fitted(document(text_of(path)), _Noted)
        folder.digests.check(path.stem, path)
    return {name: value for name, value in vars(found).items() if value is not None}


def windows_before(folder: RunFolder, text: str | None, window: int) -> int | None:
    """Number of windows of this length, of each text of this name, on which the run was measured; None if it was
    not."""
    before = noted(folder)
    windows, front = before.get("windows"), folder.front()
    measured = front.table[front.measured_columns].notna().to_numpy().any()
    if not windows or before.get("text") != text or not measured:
        return None
    found = shapes_of(windows)
    return max(shape[0] for shape in found) if all(shape[1:] == [window] for shape in found) else None


def shapes_of(windows: Sequence) -> list[list[int]]:
    """Shapes of the tokens of all texts.

    >>> shapes_of([64, 512]), shapes_of(([64, 512], [9, 512]))
    ([[64, 512]], [[64, 512], [9, 512]])
    """
    return [list(shape) for shape in ([windows] if windows and isinstance(windows[0], int) else windows)]


def told_windows(windows: Sequence | None) -> str:
    """Number of windows, for messages.

    >>> told_windows([64, 512]), told_windows(([64, 512], [9, 512]))
    ('64 windows', '64 + 9 windows')
    """
    return f"{' + '.join(str(shape[0]) for shape in shapes_of(windows or ()))} windows"


def recipe(refine: RefinePlan) -> dict:
    """Settings that all refined layouts have to share. refine: with device-dependent defaults filled in. Older versions
    had no long windows, and recorded no share of them."""
    long = {"long_share": refine.long_share} if refine.long_share else {}
    return {"scope": refine.scope, "tokens": refine.tokens, **long}


def comparable(folder: RunFolder, front: ParetoFront, refine: RefinePlan | None, set: tuple[str, ...]) -> ParetoFront:
    """The front without measurements that do not apply to the export: made with other parameters of merges, or on
    layouts refined otherwise. refine: with device-dependent defaults filled in."""
    made = noted(folder)
    other_set, other_recipe = tuple(made.get("set", ())) != set, refine and made.get("refinement") != recipe(refine)

    def made_otherwise(table: pd.DataFrame) -> pd.Series:
        refined = table["merge"].str.endswith(REFINED) & bool(other_recipe)
        return (refined | other_set) & (table["method"] != ORIGINAL)

    table, kept = front.table.copy(), front.kept.rows
    table.loc[made_otherwise(table), front.measured_columns] = np.nan
    front = ParetoFront(table, KeptRows(kept[~made_otherwise(kept)].reset_index(drop=True)))
    front.mark()
    return front


def compared_by(folders: list[RunFolder]) -> list[str]:
    """Columns by which runs can be compared: "over" (nats over the original) if all were measured on the same text,
    "error" if model and fitness are the same. Raises GrouperError if neither applies."""
    one_model = len({folder.settings.fingerprint for folder in folders}) == 1
    texts, measured = set(), []
    for folder in folders:
        made = noted(folder)
        # Different models have different tokens of the same text, so texts are compared by name.
        texts.add(str(made.get("digest" if one_model else "text")))
        measured.append(folder.front().over.notna().sum() > 1)
    alike = {(f.settings.fingerprint, f.settings.options.fitness, f.settings.options.sensitivity) for f in folders}
    found = [
        column for column, fair in (("over", all(measured) and len(texts) == 1), ("error", len(alike) == 1)) if fair
    ]
    if not found:
        raise GrouperError(
            "these runs have neither nats on one text nor one model and fitness: run `grouper evaluate` on each with "
            "the same --text, its original included"
        )
    return found


def refining_options(folder: RunFolder) -> list[str]:
    """Options for `grouper export` that calibrate and refine on the run's own text, as the run's evaluation did if it
    refined. If the run had no text, a placeholder stands for it."""
    options, made = folder.settings.options, dict[str, Any]()
    words = ["--dataset", options.dataset] if options.dataset else ["--text", options.text or "calibration.txt"]
    words = ["--images", options.images] if options.images else words
    words += ["--tokens", str(options.tokens)] if options.tokens != TOKENS else []
    words += ["--window", str(options.window)] if options.window != WINDOW else []
    with suppress(GrouperError):
        made = noted(folder).get("refinement", made)
    words += ["--scope", str(made["scope"])] if made.get("scope") else []
    words += ["--refine-tokens", str(made["tokens"])] if made.get("tokens") else []
    return words
