"""`--text self` of a run: text that the searched model writes into the run's folder before anything reads it."""

from dataclasses import replace
from pathlib import Path

from grouper.calibration.calibration import Calibration
from grouper.calibration.own_answers import OwnAnswers, asks_for_own
from grouper.calibration.source import TextSource
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.machine import Machine
from grouper.model.loadable import check_model
from grouper.outputs import refuse_inside
from grouper.ranks import locked_by_first
from grouper.refinement.options import AskedRefinement, RefineOptions
from grouper.schema import damage_said
from search.options import SearchOptions
from search.runs.folder import RunFolder


def with_own_text(
    options: SearchOptions,
    checkpoint: Checkpoint,
    folder: RunFolder,
    machine: Machine,
    overwrite: bool,
    refine: AskedRefinement | None = None,
) -> SearchOptions:
    """The options with the file of the model's answers as text, if they ask for answers. refine: the refinement that
    follows, which also reads the text. Raises GrouperError if the folder holds a run of another text."""
    calibration = options.calibration()
    if calibration is None or not asks_for_own(calibration.source):
        return options
    check_model(checkpoint)
    asked = _asked(calibration, checkpoint, options.seed, machine, refine)
    path = asked.path(folder.answers)
    if folder.exists() and not overwrite and folder.settings.options.text != str(path):
        raise GrouperError(f"{folder.path} holds a run with another text: choose another folder, or --overwrite to "
                           "replace it")  # fmt: skip
    _write(asked, path, folder, machine)
    return replace(options, text=str(path))


def calibration_with_own_text(
    calibration: Calibration, folder: RunFolder, machine: Machine, refine: AskedRefinement | None
) -> Calibration:
    """The calibration, on answers of the run's model if it asks for them."""
    if not asks_for_own(calibration.source):
        return calibration
    settings = folder.settings
    asked = _asked(calibration, settings.open_checkpoint(), settings.options.seed, machine, refine)
    path = asked.path(folder.answers)
    _write(asked, path, folder, machine)
    machine.ranks.first_does(lambda: folder.note_answers(str(path)))
    return replace(calibration, source=TextSource(str(path)))


def _asked(
    calibration: Calibration, checkpoint: Checkpoint, seed: int, machine: Machine, refine: AskedRefinement | None
) -> OwnAnswers:
    """Answers with enough tokens for the calibration and the refinement."""
    tokens = max(calibration.tokens, (refine or RefineOptions()).plan(machine.device).tokens)
    return OwnAnswers.of(calibration.source, checkpoint, tokens, seed, machine.device)


def _write(asked: OwnAnswers, path: Path, folder: RunFolder, machine: Machine) -> None:
    refuse_inside(folder.path, asked.checkpoint.local_folder)
    if path.is_file():
        with damage_said(path, "delete it, and the model writes it again"):
            folder.digests.check(path.stem, folder.answers / path.name)
    with locked_by_first(machine.ranks, folder.path):
        machine.ranks.first_does(lambda: asked.write(path, machine))
