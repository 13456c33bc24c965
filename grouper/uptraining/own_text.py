"""`--text self` in training: text that the original writes into the folder of the work in progress."""

from dataclasses import replace
from pathlib import Path

from grouper.calibration.own_answers import OwnAnswers, asks_for_own
from grouper.calibration.source import TextSource
from grouper.machine import Machine
from grouper.refinement.options import TOKENS
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.options import UptrainOptions

OTHERS = 500_009  # added to the seed


def with_own_text(
    source: TextSource, model: ExportedModel, options: UptrainOptions, work: Path, machine: Machine
) -> TextSource:
    """The source, or the file of the original's answers if it asks for them. They are others than those that refinement
    with the same seed has seen."""
    if not asks_for_own(source):
        return source
    tokens = options.tokens or TOKENS["cuda" if "cuda" in machine.device else "cpu"]
    asked = OwnAnswers.of(source, model.original, tokens, options.seed + OTHERS, machine.device)
    path = work / asked.key / "answers.jsonl"
    machine.ranks.first_does(lambda: asked.write(path, machine))
    return replace(source, text=str(path))
