"""Search of one model: layer by layer, then budgets over layers. A search that was killed resumes."""

import time
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path

from grouper.calibration.calibration import Calibration
from grouper.calibration.kept_tokens import KeptTokens
from grouper.calibration.text import digest
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.compress import Regrouper
from grouper.errors import GrouperError
from grouper.families.architecture import Architecture
from grouper.machine import Machine, Tell
from grouper.model.loadable import check_model
from grouper.outputs import refuse_inside
from grouper.ranks import Ranks, locked_by_first
from grouper.weight_size import weight_bytes
from grouper.writable import refuse_unwritable
from search.engine.assemble import assemble_layouts
from search.engine.layers import search_layers
from search.engine.parallelism import parsed_jobs
from search.engine.sensitivity import scaled
from search.methods.registry import methods_of, with_equal_groups
from search.options import SearchOptions
from search.own_text import with_own_text
from search.runs.folder import RunFolder
from search.runs.pareto import ParetoFront, Scored
from search.runs.picture import draw
from search.runs.settings import RunSettings


def search(
    model: str | PathLike,
    output: str | PathLike,
    options: SearchOptions | None = None,
    *,
    revision: str | None = None,
    jobs: str | int = "auto",
    machine: Machine | None = None,
    keep_calibration: str | PathLike | bool | None = True,
    overwrite: bool = False,
    resume: bool = False,
    command: str | None = None,
) -> ParetoFront:
    """Search groupings of `model`'s KV heads and write the run to the folder `output`.

    Resumes an earlier run of the same model and options in that folder; its files are the same as those of an
    uninterrupted run. Returns the front with all layouts. jobs: number of layers searched in parallel, or "auto".
    machine: on a GPU, every model is streamed during calibration unless the machine's memory is given.
    keep_calibration: a folder in which the calibration of this model, text and tokens is kept and looked for; True for
    the run's own folder, unless that would need more space than the model; or False. overwrite: replace an earlier run;
    with `resume`, only one of another model or of other options. command: the command line as typed, for the record.
    Several ranks share out layers and text. Raises GrouperError for a model that cannot be searched, before anything is
    written.
    """
    refuse_unwritable(Path(output))
    machine, kept = machine or Machine(), RunFolder(Path(output)).kept_tokens()
    device, ranks = machine.device, machine.ranks
    options = with_equal_groups((options or SearchOptions()).resolved())
    checkpoint = Checkpoint.open(model, revision)
    architecture = Architecture.of(checkpoint.config)
    check_counts(architecture, options.kv_heads_multiple_of)
    check_model(checkpoint)  # before any download
    methods, jobs = methods_of(options, architecture), parsed_jobs(str(jobs), architecture, device)
    options = with_own_text(options, checkpoint, RunFolder(Path(output)), machine, overwrite)
    set_aside = overwrite or RunFolder(Path(output)).sets_aside  # an existing run continues as it began
    calibration = options.calibration(kept_where(keep_calibration, Path(output), checkpoint), set_aside)
    regrouper = regrouper_for(checkpoint, calibration, options, machine, kept)
    settings = RunSettings.of(
        checkpoint, options, set_aside=set_aside,
        revision=revision, text_digest=digest_of_text(regrouper, options), jobs=jobs, device=device, command=command,
    )  # fmt: skip
    refuse_inside(Path(output), checkpoint.local_folder)
    with locked_by_first(ranks, Path(output)):
        folder = ranks.first_does(lambda: RunFolder.start(Path(output), settings, overwrite, resume))
        seen_by_all(folder, ranks)
        ranks.first_does(kept.begin)
        started = time.perf_counter()
        found = search_layers(folder, regrouper, options, methods, jobs, machine.progress, machine.tell)
        tell_of_kept(folder, regrouper, machine.tell)
        of_layers = time.perf_counter() - started

        def finish() -> ParetoFront:
            candidates = scaled(found, folder, regrouper, machine.progress) if options.sensitivity else found
            layouts = assemble_layouts(candidates, architecture, options, methods)
            front = write_front(folder, layouts, options, checkpoint)
            timings = {"stage1_s": round(of_layers, 2), "total_s": round(time.perf_counter() - started, 2)}
            folder.write_settings(replace(settings, timings=timings))
            return front

        return ranks.first_does(finish)


def regrouper_for(
    checkpoint: Checkpoint,
    calibration: Calibration | None,
    options: SearchOptions,
    machine: Machine,
    kept: KeptTokens,
) -> Regrouper:
    """Regrouper for a search, with a budget of memory that suits it."""
    memory = machine.memory
    if memory is None and "cuda" in machine.device and options.acceptance != "loss":
        memory = 0  # the model is run only once, and streaming takes less time than loading
    local = checkpoint.local() if calibration else checkpoint
    return Regrouper(local, calibration, machine.device, memory, machine.ranks, kept)


def kept_where(asked: str | PathLike | bool | None, run: Path, checkpoint: Checkpoint) -> str | PathLike | None:
    """Folder for the calibration; None for a temporary one."""
    if not isinstance(asked, bool):
        return asked
    architecture = Architecture.of(checkpoint.config)
    bytes_each = 4 * (architecture.hidden_size + 1) ** 2  # one float32 matrix, or two if queries have another input
    matrices = sum(2 if cache == "source" else 1 for cache in architecture.caches) or architecture.layers
    return RunFolder(run).moments if asked and bytes_each * matrices < checkpoint.nbytes else None


def tell_of_kept(folder: RunFolder, regrouper: Regrouper, tell: Tell) -> None:
    """Print which moments this process has written to the run's folder or found there."""
    if regrouper.keeps_moments and (kept := regrouper.kept_moments()).folder.parent == folder.moments:
        size = f"{kept.nbytes / 1e6:,.1f} MB"
        tell(f"calibration kept in {folder.moments} ({size}); --no-keep-calibration turns that off")


def digest_of_text(regrouper: Regrouper, options: SearchOptions) -> str | None:
    """Digest of the calibration tokens; None without text. Raises GrouperError if the text is too short."""
    if regrouper.calibration is None:
        return None
    if options.acceptance == "loss" or options.sensitivity:
        regrouper.held_out(1)
    return digest(regrouper.windows(options.tokens))


def seen_by_all(folder: RunFolder, ranks: Ranks) -> None:
    """Raise GrouperError if several machines do not share the run's folder."""
    if not all(ranks.gather(folder.exists())):
        raise GrouperError(f"{folder.path} is not seen by all ranks: several machines need a folder that they share")


def check_counts(architecture: Architecture, multiple_of: int) -> None:
    """Raise GrouperError if the model has no KV-head count to search."""
    if architecture.kv_heads == 1:
        raise GrouperError("the model has one KV head (it is MQA already): there is nothing left to group")
    if multiple_of < 1 or not architecture.uniform_counts(multiple_of):
        known = f"no KV-head count below the model's {architecture.kv_heads} is a multiple of {multiple_of}"
        raise GrouperError(f"{known}: --kv-heads-multiple-of can be 1 to {architecture.kv_heads - 1}")


def write_front(
    folder: RunFolder, layouts: list[Scored], options: SearchOptions, checkpoint: Checkpoint
) -> ParetoFront:
    """Write the layouts, table and picture of a run. Measurements of the same layouts are kept."""
    front = ParetoFront.of(layouts, options.kv_dtype, partial(weight_bytes, checkpoint))
    folder.write_layouts([scored.layout for scored in layouts])
    if not (folder.path / "pareto.csv").is_file() or not folder.front().same_layouts(front):
        folder.write_front(front)
        folder.forget_measured()  # the numbers of its layouts have new meanings
    front = folder.front()
    draw(front, folder.path / "pareto.svg", f"{checkpoint.title}: KV cache against what it costs")
    return front
