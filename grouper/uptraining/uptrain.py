"""Fine-tuning of an exported model (`grouper uptrain`). The result has the same class and layout, and is closer to its
original."""

import math
from dataclasses import asdict, replace
from pathlib import Path

import torch

from grouper.calibration.source import TextSource
from grouper.checkpoint.checkpoint import Checkpoint
from grouper.errors import GrouperError
from grouper.export import Exported, ExportOptions, export_model
from grouper.export.facts import MARKER
from grouper.export.format import SelfTestFailed
from grouper.layout import HeadLayout
from grouper.machine import Machine
from grouper.model.memory import free_memory
from grouper.originals import remember
from grouper.outputs import forget_work, refuse_existing, refuse_inside, work_key
from grouper.progress import Progress
from grouper.ranks import Ranks, locked_by_first
from grouper.refinement.refine import deterministic
from grouper.registry import check_assignments
from grouper.uptraining.distributed import accelerator_for, sharded
from grouper.uptraining.division import Division, divisions
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.methods import METHODS
from grouper.uptraining.needs import TRAINED, WEIGHT, check_memory
from grouper.uptraining.options import UptrainOptions, UptrainPlan
from grouper.uptraining.own_text import with_own_text
from grouper.uptraining.saved import SavedTraining
from grouper.uptraining.student import Student
from grouper.uptraining.teacher import Teacher, check_teacher, open_teacher
from grouper.uptraining.text import TrainingText
from grouper.uptraining.training import Training
from grouper.uptraining.validation import Score

MOST_PASSES = 64  # most epochs over a text
LOG = "uptraining.jsonl"  # file next to the weights
OLD = ("layout", "report", "deploy", "measured", "crc32")  # facts of the export that are computed again


def uptrain_model(
    exported: str | Path,
    output: str | Path,
    source: TextSource,
    options: UptrainOptions | None = None,
    *,
    base: str | None = None,
    teacher: str | None = None,
    teacher_device: str | None = None,
    teacher_dtype: str | None = None,
    machine: Machine | None = None,
    overwrite: bool = False,
    command: str | None = None,
) -> Exported:
    """Train the folder `exported`, a result of `grouper export`, on text, and write the folder `output`. Class and
    layout stay the same, and the output is tested like an export.

    base: the model that the export was made from (default: the one in grouper.json). teacher: model to distil from
    (default: the base). teacher_dtype: bfloat16 on a GPU, else float32, by default. machine: its memory is the budget
    of the teacher in bytes; a larger one is streamed. The state of the training is kept in OUTPUT.uptrain until the
    output is complete, so that a killed training resumes, on a CPU with the same result. Logs of a tracker stay in
    OUTPUT.logs. Several ranks train together. Raises GrouperError.
    """
    machine = machine or Machine()
    ranks, options, output = machine.ranks, options or UptrainOptions(), Path(output)
    ranks.first_does(lambda: refuse_existing(output, MARKER, overwrite))
    model = ExportedModel.open(exported, base, teacher)
    refuse_inside(output, model.folder.folder, model.base.local_folder)
    check_assignments(options.set, METHODS)
    method = METHODS.configured(options.set).named(options.method)
    method.check(model)
    losses = options.losses or method.losses
    options = replace(options, losses=losses)
    check_memory(model.folder, options, machine.device, ranks.size if sharded() else 1)
    taught_by = teacher_of(model, teacher) if losses.needs_teacher else None
    work = Path(f"{str(output).rstrip('/')}.uptrain")
    source = with_own_text(source, model, options, work, machine)
    text, saved = as_begun(model, taught_by, source, options, machine.device, work)
    plan = text.plan
    check_text(text.learnt, plan, source.name, ranks)
    with locked_by_first(ranks, output), deterministic():
        opened = None
        if taught_by is not None:
            opened = _teacher(taught_by, teacher_device or machine.device, teacher_dtype, machine.memory, plan)
        student = new_student(model, plan, machine.device)
        texts = (text.learnt, text.judged)
        training = Training(accelerator_for(machine.device, plan, saved), student, opened, texts, plan, saved, ranks)
        training.keep_last = text.flattered
        machine.tell(announced(training))
        score = training.run(machine.progress)
        machine.tell(told(score, training.reached.best_step))
        facts = facts_of(model, training, score, taught_by, command)
        del student, training, opened  # several ranks may hold them in parts: the best weights are read from disk
        return ranks.first_does(lambda: write(model, plan, output, facts, saved, overwrite, machine.progress))


def teacher_of(model: ExportedModel, teacher: str | None) -> Checkpoint:
    """Teacher: the named model, else the export's original. Raises GrouperError if its vocabulary differs."""
    found = Checkpoint.open(teacher).local() if teacher else model.original
    check_teacher(found, model.original)
    return found


def as_begun(
    model: ExportedModel,
    teacher: Checkpoint | None,
    source: TextSource,
    options: UptrainOptions,
    device: str,
    work: Path,
) -> tuple[Division, SavedTraining]:
    """Division of the text, and the saved training in the folder `work`. If an older version has begun this training,
    its way of dividing is kept."""
    found = []
    for division in divisions(model, source, options, device):
        found.append((division, SavedTraining(work / _key(model, teacher, division))))
        if found[-1][1].reached() or not work.is_dir():
            return found[-1]
    return found[0]


def new_student(model: ExportedModel, options: UptrainOptions, device: str) -> Student:
    method = METHODS.configured(options.set).named(options.method)
    return Student(model, method, device, options.lora_rank if options.train == "lora" else 0, options.seed)


def check_text(text: TrainingText, plan: UptrainPlan, name: str, ranks: Ranks) -> None:
    """Raise GrouperError if the text is too short for the plan, or if a step cannot be divided among the ranks."""
    if plan.step_windows % ranks.size:
        windows = f"`step_tokens={plan.step_tokens}` are {plan.step_windows} windows of {plan.window}"
        raise GrouperError(f"{windows}, which {ranks.size} processes cannot share alike: give a multiple")
    if not text.weights.any():
        raise GrouperError(f"{name} has no answers to learn: chats need messages of the role assistant")
    passes = plan.tokens / text.tokens
    if passes > MOST_PASSES:
        raise GrouperError(
            f"{plan.tokens:,} tokens are {passes:.0f} passes over the {text.tokens:,} of {name}: give more "
            f"text, or at most {MOST_PASSES * text.tokens:,} `tokens`"
        )
    if plan.steps < 2:
        raise GrouperError(f"{plan.tokens:,} tokens are {plan.steps} step of {plan.step_tokens:,}: give more")


def announced(training: Training) -> str:
    """Message before training: parameters, tokens, estimated time and memory."""
    plan, text = training.plan, training.text.tokens
    trained = sum(p.numel() for _, p in training.student.trained())
    there = sum(p.numel() for p in training.student.model.parameters())
    needed = WEIGHT * there + (TRAINED + WEIGHT) * trained  # a copy of the best weights is kept
    if training.teacher is not None:
        needed += sum(p.nbytes for p in training.teacher.model.model.parameters() if not p.is_meta)
    passes, seconds = plan.tokens / text, training.seconds_left()
    steps = f"{plan.steps} steps{'' if plan.lr else ' after short trainings that find the rate'}"
    kept = "; refinement has seen nearly all of this text, which flatters the start: trained to the end"
    return (
        f"training {trained:,} of {there:,} parameters on {plan.tokens:,} tokens ({passes:.1f} passes over "
        f"{text:,}), {steps}: about {seconds:.0f} s, {needed / 1e9:.1f} GB and activations"
        f"{kept if training.keep_last else ''}"
    )


def told(score: Score, best_step: int) -> str:
    """Message after training: losses and scores on held-out text."""
    found = []
    if not math.isnan(score.nll):
        over = "" if math.isnan(score.teacher_nll) else f", {score.nll - score.teacher_nll:+.4f} over the original"
        found.append(f"{score.nll:.4f} nats per token on held-out text{over}")
    if not math.isnan(score.kl):
        found.append(f"KL {score.kl:.4f}, the same likeliest token {score.agreement:.1%} of the time")
    if not math.isnan(score.cosine):
        found.append(f"cosine with the original's vectors {score.cosine:.4f}")
    same = "training made nothing better, so weights stay as they were (more `tokens`, or a lower `lr`?): "
    return (same if best_step == 0 else "") + "; ".join(found)


def facts_of(
    model: ExportedModel, training: Training, score: Score, teacher: Checkpoint | None, command: str | None
) -> dict:
    """Facts for grouper.json and the model card: those of the export, and those of the training."""
    plan = training.plan
    steps = training.reached.step
    known = {n: v for n, v in asdict(score).items() if n != "cosine" or not math.isnan(v)}
    done = {
        "method": plan.method, "teacher": teacher and teacher.title,
        "tokens": steps * plan.step_windows * plan.window, "steps": steps,
        "best_step": training.reached.best_step, "losses": asdict(plan.losses), "learning_rate": plan.lr,
        "train": plan.train, "held_out": _finite(known),
        **({"rates_tried": _finite(training.reached.tried)} if training.reached.tried else {}),
    }  # fmt: skip
    measured: dict[str, list[float | None]] = {}
    if not math.isnan(score.nll):
        measured |= {"nats per token, held-out training text": [_number(score.teacher_nll), score.nll]}
    if not math.isnan(score.kl):
        measured |= {"KL to the original": [0.0, score.kl], "agreement with the original": [1.0, score.agreement]}
    if not math.isnan(score.cosine):
        measured |= {"cosine with the original's vectors": [1.0, score.cosine]}
    kept = {k: v for k, v in model.facts.items() if k not in OLD}
    kept["base_fingerprint"] = model.original.fingerprint
    return {**kept, "uptrain": command, "uptrained": done, "measured": measured}


def write(
    model: ExportedModel,
    options: UptrainOptions,
    output: Path,
    facts: dict,
    saved: SavedTraining,
    overwrite: bool,
    progress: Progress,
) -> Exported:
    """Write the folder with the best weights, test it, then remove the saved training."""
    student = new_student(model, options, "cpu")
    tensors, reached = saved.load(saved.best)
    student.put(tensors, reached.layout)
    student.fold()
    layout = student.layout
    described = None if model.base is not model.folder else HeadLayout.from_data(model.facts["layout"])
    asked = ExportOptions(overwrite=overwrite, tp=model.tp)
    if layout == model.layout or model.tp > 1:  # the same class as before, whatever its padding
        asked = replace(asked, max_padding=-1.0 if model.export_class == "ragged" else math.inf)
    try:
        exported = export_model(
            model.base, layout, output, merge=facts["merge"], merged=student.layer, around=student.around(),
            options=asked, origin=facts, described=described, beside={LOG: saved.log}, progress=progress,
        )  # fmt: skip
    except SelfTestFailed as error:
        raise SelfTestFailed(f"{error}; the training stays in {saved.folder}") from error
    remember(model.original)
    forget_work(saved.folder.parent)
    return exported


def _teacher(checkpoint: Checkpoint, device: str, dtype: str | None, memory: int | None, plan: UptrainPlan) -> Teacher:
    gpu = "cuda" in device
    room = free_memory() / 2 if memory is None else memory
    if gpu:
        room = min(room, torch.cuda.mem_get_info(device)[0] / 3)
    number = getattr(torch, dtype or ("bfloat16" if gpu else "float32"))
    return open_teacher(checkpoint, device, number, room, plan.losses.hidden > 0, plan.step_tokens)


def _key(model: ExportedModel, teacher: Checkpoint | None, text: Division) -> str:
    """Key of exactly this training."""
    texts = [*text.learnt.digests, *text.judged.digests]
    teacher_is = teacher and teacher.fingerprint
    return work_key(model=model.folder.fingerprint, teacher=teacher_is, texts=texts, options=asdict(text.plan))


def _number(value: float) -> float | None:
    """Number for JSON, which has no NaN: None if it is not finite."""
    return value if math.isfinite(value) else None


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}
