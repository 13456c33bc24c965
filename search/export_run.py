"""Export of a run's layout in four steps: choose it, merge, refine and measure it, write it, push it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path

from grouper.attention import Merged
from grouper.cache_types import CACHE_TYPES
from grouper.calibration.calibration import Calibration
from grouper.calibration.text import digest
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.compress import Regrouper
from grouper.errors import GrouperError
from grouper.export import Exported, ExportOptions, export_model
from grouper.export.facts import MARKER
from grouper.export.format import SelfTestFailed
from grouper.export.hub import Destination
from grouper.export.write import already_written, check_exportable
from grouper.families.architecture import Architecture
from grouper.layout import HeadLayout
from grouper.machine import Machine, Tell, no_message
from grouper.outputs import forget_work, refuse_existing, refuse_inside, temporary_folder, work_key
from grouper.ranks import locked_by_first
from grouper.refinement.options import RefineOptions, RefinePlan
from grouper.refinement.store import LayerStore
from grouper.writable import refuse_unwritable
from search.evaluation.held_out import HeldOut
from search.evaluation.record import Record
from search.own_text import calibration_with_own_text
from search.run import digest_of_text
from search.runs.chosen import Chosen, announce, choose_layout
from search.runs.folder import RunFolder
from search.runs.selection import Selection
from search.runs.settings import RunSettings


def export_from_run(
    run: str | Path,
    output: str | Path,
    selection: Selection,
    calibration: Calibration | None = None,
    refine: RefineOptions | None = None,
    options: ExportOptions | None = None,
    destination: Destination | None = None,
    held_out: HeldOut | None = None,
    *,
    machine: Machine | None = None,
    keep_calibration: str | PathLike | None = None,
    set: tuple[str, ...] = (),
    command: str | None = None,
) -> Exported:
    """Write the selected layout of `run` to the folder `output`.

    calibration: text for the merge (default: the run's own). refine: refine on that text. The run's own text must still
    give the tokens that were searched on; if not, nothing is refined, and `not_refined` of the result says why. Refined
    layers are kept in the folder OUTPUT.refine until the export is done, so that an interrupted refinement resumes.
    destination: place on the Hub to push the folder to; a folder that the same command wrote before is pushed
    unchanged. held_out: text to measure the original and the merged layers on before they are written, for the run and
    the model card. set: parameters of merges, which override the run's. command: the command line as typed, for the
    record. Messages go to the machine's `tell`. Several ranks calibrate and refine together, and the first one writes.
    Raises GrouperError.
    """
    refuse_unwritable(Path(output))
    machine, options, output = machine or Machine(), options or ExportOptions(), Path(output)
    if destination:
        destination.check()
    folder, selection = RunFolder.open(Path(run)), replace(selection, tp=options.tp)
    ranks, tell, settings = machine.ranks, machine.tell, folder.settings
    plan = replace(refine, seed=settings.options.seed).plan(machine.device) if refine else None
    chosen = choose_layout(folder, selection, plan, set, tell)
    written = ranks.first_does(lambda: already_written(output, chosen.layout, command))
    if destination and not options.overwrite and written:
        tell(f"{output} is written already")
        return ranks.first_does(lambda: push(written, destination))
    ranks.first_does(lambda: refuse_existing(output, MARKER, options.overwrite))
    checkpoint = settings.open_checkpoint()
    check_exportable(checkpoint, chosen.layout, options)
    plan = plan if is_grouped(chosen.layout, checkpoint) else None
    refuse_inside(output, checkpoint.folder)
    kept, not_refined = folder.kept_tokens(), None
    ranks.first_does(kept.begin)
    calibration = calibration and calibration_with_own_text(calibration, folder, machine, plan)
    text = calibration or settings.calibration(keep_calibration)
    regrouper = Regrouper(checkpoint, text, machine.device, machine.memory, ranks, kept, folder.moments)
    if plan and not calibration:
        readable, not_refined = ranks.first_does(lambda: own_text(regrouper, settings))
        regrouper = regrouper if readable else Regrouper(checkpoint, None, machine.device, machine.memory, ranks)
    if not_refined or (refine and not plan):
        plan, chosen = None, choose_layout(folder, selection, None, set, no_message)
    announce(chosen, tell)
    if regrouper.calibration and not ranks.alone:
        regrouper.kept_moments(machine.progress)  # all ranks collect them together
    aside = held_out.read(checkpoint, kept) if held_out else None
    record = Record(folder, chosen, set, command, aside, options.overwrite)
    with locked_by_first(ranks, output):
        done = carry_out(regrouper, chosen, output, plan, options, record, destination, machine)
    return replace(done, not_refined=not_refined, kv_cache=_cache_type(chosen, selection))


def is_grouped(layout: HeadLayout, checkpoint: Checkpoint) -> bool:
    """Whether the layout differs from the original's. If not, nothing is merged, and nothing is to be refined."""
    return layout != Architecture.of(checkpoint.config).ungrouped


def _cache_type(chosen: Chosen, selection: Selection) -> str | None:
    """KV cache type that the layout was chosen with, if it is not the run's own."""
    served = chosen.picked.row.get("kv_cache") or selection.kv_cache
    return served if served in CACHE_TYPES else None


def own_text(regrouper: Regrouper, settings: RunSettings) -> tuple[bool, str | None]:
    """(whether the run's calibration text can still be read, the reason not to refine on it)."""
    asked = "add --images FOLDER" if regrouper.architecture.family.reads == "pictures" else "add --text FILE"
    if regrouper.calibration is None:
        return False, f"{asked} (the run was searched without)"
    try:
        same = digest_of_text(regrouper, settings.options) == settings.text_digest
    except GrouperError as error:
        return False, f"{asked} ({error}; it was merged without text, too)"
    name = regrouper.calibration.source.name
    return True, None if same else f"{asked} ({name} changed since the run was searched)"


def carry_out(
    regrouper: Regrouper,
    chosen: Chosen,
    output: Path,
    refine: RefinePlan | None,
    options: ExportOptions,
    record: Record,
    destination: Destination | None,
    machine: Machine,
) -> Exported:
    """Steps two to four: merge, write and push. Refined layers are kept until the export is complete."""
    if refine:
        regrouper, refine = as_begun(regrouper, chosen, refine, output, machine.tell)
    kept = kept_refinement(regrouper, chosen, refine, output) if refine else None
    origin = record.origin()
    merged: Merged
    with temporary_folder(output.absolute().parent, output.name) as temporary:
        if refine and kept:
            merged, origin["refined"] = merge_and_refine(regrouper, chosen, refine, kept, machine)
        else:
            merged = regrouper.merged(chosen.layout, chosen.merge, temporary)
        origin["measured"] = record.measured(regrouper, refine, merged, machine.progress)
        if options.kv_gauge:
            if regrouper.calibration and not regrouper.ranks.alone:
                regrouper.kept_moments(machine.progress)  # before the first rank writes alone
            merged = regrouper.gauged(chosen.layout, merged)

        def write() -> Exported:
            with told_where(kept):
                exported = export_model(
                    regrouper.checkpoint, chosen.layout, output, merge=chosen.label, merged=merged, options=options,
                    origin=origin, progress=machine.progress,
                )  # fmt: skip
            if kept:
                with suppress(OSError):  # the run is not writable: its report lacks this
                    record.note_refined(origin["refined"]["errors"])
            forget_work(refined_beside(output))
            return push(exported, destination)

        return regrouper.ranks.first_does(write)


@contextmanager
def told_where(kept: Path | None) -> Iterator[None]:
    """If the self-test fails, add to its message where the refined layers are kept."""
    try:
        yield
    except SelfTestFailed as error:
        if kept is None:
            raise
        raise SelfTestFailed(
            f"{error}; the refined layers stay in {kept}, the same command goes on from there"
        ) from error


def kept_refinement(regrouper: Regrouper, chosen: Chosen, refine: RefinePlan, output: Path) -> Path:
    """Folder for layers while they are refined: one for each model, layout, text and set of options."""
    texts = [digest(text) for text in regrouper.texts(refine)]
    key = work_key(
        model=regrouper.checkpoint.fingerprint, layout=chosen.layout.to_json(), text=" ".join(texts),
        merge=chosen.merge.key, refine=refine.key,
    )  # fmt: skip
    return refined_beside(output) / key


def refined_beside(output: Path) -> Path:
    """Folder next to `output` that holds the layers refined so far."""
    return Path(f"{str(output).rstrip('/')}.refine")


def as_begun(
    regrouper: Regrouper, chosen: Chosen, refine: RefinePlan, output: Path, tell: Tell
) -> tuple[Regrouper, RefinePlan]:
    """The same regrouper and plan; or, if an older version began this refinement, those of that version: without long
    windows, on the whole text, with nothing set aside."""

    def begun(way: tuple[Regrouper, RefinePlan]) -> bool:
        return kept_refinement(way[0], chosen, way[1], output).is_dir()

    now = regrouper, refine
    if not refined_beside(output).is_dir() or begun(now):
        return now
    older, short = regrouper.on_whole_text(), replace(refine, long_share=0.0)
    for way in ((regrouper, short), (older, refine), (older, short)):
        if begun(way):
            tell("an older version began this refinement: it goes on as that began it")
            return way
    return now


def merge_and_refine(
    regrouper: Regrouper, chosen: Chosen, refine: RefinePlan, kept: Path, machine: Machine
) -> tuple[LayerStore, dict]:
    """Step two: the layers' weights, and a record of the refinement. Prints an estimate of the time."""
    texts = regrouper.texts(refine)
    tokens = sum(text.numel() for text in texts)
    layers, steps = range(len(chosen.layout.layers)), refine.steps_for(tokens)
    seconds = regrouper.estimate(chosen.layout, chosen.merge, refine)
    machine.tell(f"refining {len(layers)} layers on {tokens:,} tokens, {steps} steps each: about {seconds:.0f} s")
    ranks = regrouper.ranks
    merged = regrouper.refined(chosen.layout, chosen.merge, refine, kept, machine.progress, ranks, machine.tell)
    errors = [merged.errors(layer) for layer in layers]
    facts = {"tokens": tokens, "steps": steps, "scope": refine.scope, "errors": errors}
    if len(texts) > 1:
        facts |= {"long_windows": texts[1].shape[1], "tokens_in_long_windows": texts[1].numel()}
    return merged, {**facts, "seen": regrouper.seen(refine).to_data()}


def push(exported: Exported, destination: Destination | None) -> Exported:
    """Step four: push to the Hub, if a destination was given."""
    if destination is None:
        return exported
    return replace(exported, pushed=destination.push(Path(exported.folder)))
