"""`grouper uptrain`: train an exported model to come closer to its original."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from grouper.calibration.source import TextSource
from grouper.machine import Machine
from grouper.option_fields import Option
from grouper.uptraining.methods import METHODS
from grouper.uptraining.options import UptrainOptions
from search.commands.evaluate import DTYPES, check_dtype
from search.commands.options import Config, Json, Overwrite, command
from search.commands.saying import other_text, print_json, tell, tell_next, typed_command

Weight = float | None


@command("uptrain", first="output text dataset images tokens lr train device")
def run(
    exported: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `grouper export` wrote.")],
    output: Annotated[
        Path, Option("Folder for the healed model, in the same export class.", short="-o", metavar="DIR")
    ],
    source: TextSource,
    options: UptrainOptions,
    machine: Machine,
    teacher: Annotated[
        str | None, Option("Model to distil from (default: the original).", "Teacher", metavar="MODEL")
    ] = None,
    base: Annotated[
        str | None, Option("The original, if grouper.json does not lead to it.", "Teacher", metavar="MODEL")
    ] = None,
    teacher_device: Annotated[str | None, Option("Device of the teacher (default: the model's).", "Teacher")] = None,
    teacher_dtype: Annotated[
        str | None, Option("Teacher's data type (default: bfloat16 on a GPU, else float32).", "Teacher", words=DTYPES)
    ] = None,
    kl: Annotated[
        Weight, Option("Loss weight of the KL divergence from the teacher (default: the method's).", "Training")
    ] = None,
    hidden: Annotated[
        Weight, Option("Loss weight of the cosine distance of hidden states (default: the method's).", "Training")
    ] = None,
    causal: Annotated[
        Weight, Option("Loss weight of next-token prediction on the text (default: the method's).", "Training")
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    config: Config = None,
) -> None:
    """Heal an exported model by training it to match its original; resumable."""
    from grouper.uptraining.uptrain import uptrain_model
    from search.commands.bars import bar
    from search.commands.console import exported_summary

    check_dtype(teacher_dtype)
    given = {"kl": kl, "hidden": hidden, "causal": causal}
    losses = replace(METHODS.named(options.method).losses, **{n: w for n, w in given.items() if w is not None})
    with bar("training") as progress:
        done = uptrain_model(
            exported, output, source, replace(options, losses=losses), base=base, teacher=teacher,
            teacher_device=teacher_device, teacher_dtype=teacher_dtype, overwrite=overwrite,
            machine=replace(machine, tell=tell, progress=progress), command=typed_command(),
        )  # fmt: skip
    if json:
        return print_json(done.to_data())
    exported_summary(done)
    tell_next("evaluate", output, *other_text(source.images))
