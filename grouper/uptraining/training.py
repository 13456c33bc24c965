"""Training loop: steps of AdamW on windows of text, validations on held-out text, best weights kept."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grouper.calibration.text import shuffled_passes
from grouper.errors import GrouperError
from grouper.progress import Progress, no_progress
from grouper.ranks import Ranks
from grouper.running.answers import answered, targets_of
from grouper.running.batch import Batch
from grouper.uptraining.copies import Copy
from grouper.uptraining.loss import distance, losses_of
from grouper.uptraining.options import UptrainPlan
from grouper.uptraining.probing import FIRST, PROBES, find_rate, probe_steps
from grouper.uptraining.saved import Reached, SavedTraining
from grouper.uptraining.sharded import fill, whole
from grouper.uptraining.student import Student
from grouper.uptraining.teacher import Answers, Teacher, masks_of, streams_behind
from grouper.uptraining.text import TrainingText
from grouper.uptraining.validation import Score, score_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from grouper.uptraining.distributed import Sharding

LOOKED_AT = 10  # steps between two losses that are read back and logged
SAVING = 0.1  # largest share of the time spent on saving
MOMENTS = ("exp_avg", "exp_avg_sq")


class Training:
    """Training loop. accelerator: Accelerator of accelerate. saved: location of its state on disk."""

    keep_last = False  # whether to keep the last weights, whatever the validations

    def __init__(
        self,
        accelerator: "Accelerator | Sharding",
        student: Student,
        teacher: Teacher | None,
        texts: tuple[TrainingText, TrainingText],
        plan: UptrainPlan,
        saved: SavedTraining,
        ranks: Ranks,
    ):
        self.accelerator, self.student, self.teacher, self.ranks = accelerator, student, teacher, ranks
        self.text, self.held_out = texts
        self.plan, self.saved, self.losses = plan, saved, plan.losses
        if plan.checkpointing:
            student.checkpoint_activations()
        parameters = [p for _, p in student.trained()]
        optimizer = torch.optim.AdamW(
            parameters, lr=plan.lr or FIRST[plan.train], betas=(0.9, 0.95), weight_decay=plan.weight_decay,
            fused=accelerator.device.type == "cuda",
        )  # fmt: skip
        self.model: Any  # the student's model, or accelerate's wrapper of it
        self.optimizer: Any
        self.model, self.optimizer = accelerator.prepare(student.model, optimizer)
        self.parameters = [p for _, p in student.trained()]  # taken at this point, because sharding replaces parameters
        self.attentions = student.attentions
        self.order = shuffled_passes(len(self.text), plan.step_windows, plan.steps, plan.seed)
        micro = min(ranks.gather(micro_windows(student, plan, ranks, accelerator.device)))
        self.reached = Reached(micro_windows=micro)  # the same on all ranks, since sharded passes are joint
        self.device = accelerator.device
        self.last_saved, self.saving_took = time.perf_counter(), 0.0

    # The rate

    def find_rate(self, tell: Progress) -> None:
        """Find the learning rate by short trainings. Each starts from the initial weights, and its result is
        discarded."""
        steps, asked = probe_steps(self.plan.steps), self.plan
        start = self.best

        def score_of(rate: float) -> float:
            self.plan = replace(asked, lr=rate, tokens=steps * asked.step_windows * asked.window)
            for step in range(steps):
                self.step(step)
            found = self.score().judged(self.losses)
            self.forget(start)
            self.log(step=0, tried_rate=rate, came_to=found)
            tell(0, asked.steps, f"looking for the rate: {rate:.0e} comes to {found:.4f}")
            return found

        rate, tried = find_rate(score_of, FIRST[asked.train])
        self.reached.rate, self.reached.tried = rate, {f"{r:.3g}": found for r, found in tried.items()}
        self.plan = replace(asked, lr=rate)

    def forget(self, start: Copy) -> None:
        """Restore these weights and reset the optimizer."""
        start.put_back(self.student, self.parameters)
        self.optimizer.state.clear()
        for attention in self.attentions:
            attention.step = 0

    # Steps

    def run(self, tell: Progress = no_progress) -> Score:
        """Train to the end, or until validations stop improving. The student then has the best weights. Returns their
        score."""
        self.resume()
        if self.reached.step == 0:
            self.judge()  # weights that training does not improve stay as they were
            if self.plan.lr is None:
                self.find_rate(tell)
        steps, every = self.plan.steps, max(1, self.plan.steps // self.plan.validate)
        began, before, first = time.perf_counter(), self.reached.seconds, self.reached.step
        while self.reached.step < steps and not self.patience_is_over:
            loss = self.step(self.reached.step)
            self.reached.step += 1
            done = self.reached.step
            self.reached.seconds = before + time.perf_counter() - began
            judged = done % every == 0 or done == steps
            if judged or done % LOOKED_AT == 0:
                speed = (done - first) * self.plan.step_tokens / (time.perf_counter() - began)
                self.report(done, self.checked(loss.item()), speed, tell)
            if judged:
                self.judge()
        return self.take_best()

    def seconds_left(self) -> float:
        """Estimated seconds for the remaining steps and validations, from one measured pass of real size."""
        self.prepare_teacher(0)
        rows, remembered = self.mine(self.order[0]), {n: t.clone() for n, t in self.student.buffers().items()}
        part = rows[: self.reached.micro_windows]
        for _ in range(2):  # the first one warms up
            took = self.seconds(lambda: self.accelerator.backward(self.loss_of(part).mean()))
            with torch.no_grad():
                judging = self.seconds(lambda: self.loss_of(part))
        self.optimizer.zero_grad()
        for name, buffer in self.student.buffers().items():
            buffer.copy_(remembered[name])
        reached = self.ranks.first_does(self.saved.reached)
        left = 1 - (reached.step if reached else 0) / self.plan.steps
        steps, scores = self.plan.steps, self.plan.validate
        if self.plan.lr is None:
            steps, scores = steps + PROBES * probe_steps(steps), scores + PROBES
        passes = steps * len(rows) / len(part), scores * len(self.held_out) / len(part)
        return left * (passes[0] * took + passes[1] * judging / self.ranks.size)

    def seconds(self, call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def report(self, done: int, loss: float, speed: float, tell: Progress) -> None:
        """Report progress. speed: tokens per second."""
        steps = self.plan.steps
        left = (steps - done) * self.plan.step_tokens / speed
        tell(done, steps, f"loss {loss:.4f}, {speed:,.0f} tokens/s, {left:.0f} s left")
        self.log(step=done, loss=loss, rate=self.plan.rate(done - 1))
        self.accelerator.log({"tokens_per_second": round(speed)}, step=done)  # varies, so not in the log file

    def step(self, step: int) -> Tensor:
        """Take one step of AdamW. Returns the mean loss over its tokens."""
        rows = self.order[step]
        counted = self.text.rows(rows).weights.sum().clamp_min(1).to(self.device)
        self.prepare_teacher(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(step)
        total = torch.zeros((), device=self.device)
        parts = self.mine(rows).split(self.reached.micro_windows)
        for part in parts:
            with nullcontext() if part is parts[-1] else self.accelerator.no_sync(self.model):
                loss = self.loss_of(part).sum() / counted
                # Communication averages the gradients of the ranks.
                self.accelerator.backward(loss * self.ranks.size)
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.plan.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for attention in self.attentions:
            attention.after_step(step + 1)
        self.ranks.add_up(total)
        return total

    def mine(self, rows: Tensor) -> Tensor:
        """This rank's part of the steps' windows [..., windows]; every rank gets the same number."""
        return rows[..., self.ranks.rank :: self.ranks.size]

    def loss_of(self, rows: Tensor) -> Tensor:
        """Loss of every answer that counts, 0 for others [examples, places]."""
        some, right = self.text.rows(rows), targets_of(self.text.batch[rows])
        hidden = self.losses.hidden > 0 and self.teacher is not None
        ours = self.answers_of(some.batch, hidden)
        theirs = self.teacher.answers(some.batch, hidden, self.device) if self.teacher else None
        streams = []
        if hidden and theirs is not None:
            streams = list(zip(ours.hidden, theirs.hidden, masks_of(self.student.loaded, some.batch)))
        apart = distance(streams, some.batch.windows is not None)
        right = None if right is None else right.to(self.device)
        losses = losses_of(ours.logits, theirs and theirs.logits, right, self.losses, apart)
        return losses * some.weights.to(self.device)

    def answers_of(self, batch: Batch, hidden: bool = False) -> Answers:
        """Answers of the student."""
        with streams_behind(self.student.loaded, hidden) as streams:
            output = answered(self.model, batch, self.student.architecture, self.device, torch.float32)
        return Answers.of(output, batch, streams, self.device)

    def prepare_teacher(self, step: int) -> None:
        """Prepare the teacher for the coming steps, if it has not prepared this step's windows."""
        if self.teacher is not None and not self.teacher.knows(self.text.batch[self.mine(self.order[step])]):
            rows = self.mine(self.order[step : step + self.teacher.ahead]).flatten()
            self.teacher.prepare(self.text.batch[rows])

    @property
    def is_over(self) -> bool:
        """Whether every step was taken."""
        return self.reached.step >= self.plan.steps

    @property
    def patience_is_over(self) -> bool:
        return bool(self.plan.patience) and self.reached.waited >= self.plan.patience

    def checked(self, loss: float) -> float:
        if not math.isfinite(loss):
            kept = f"; the state of step {self.saved_step} is kept in {self.saved.folder}" if self.saved_step else ""
            raise GrouperError(f"the loss became {loss} at step {self.reached.step}: take a lower `lr`{kept}")
        return loss

    # Validation

    def score(self) -> Score:
        """Score on the held-out text."""
        return score_of(
            self.answers_of, self.teacher, self.held_out, self.reached.micro_windows, self.device, self.ranks
        )

    def judge(self) -> None:
        """Validate, keep the best weights, and save from time to time."""
        score = self.score()
        value, reached = self.checked(score.judged(self.losses)), self.reached
        self.log(step=reached.step, held_out={n: v for n, v in asdict(score).items() if math.isfinite(v)})
        reached.layout = self.student.layout.to_json()
        if value < reached.best or self.keep_last:
            reached.best, reached.best_step = value, reached.step
            self.best, self.best_reached, self.best_is_saved = self.copy(), replace(reached), False
        if self.plan.lr is not None and self.plan.has_fallen(reached.step) and not self.keep_last:
            reached.waited = 0 if value < reached.lately else reached.waited + 1
            reached.lately = min(value, reached.lately)
        # One rank decides, because clocks differ and all ranks must gather the tensors to save.
        if self.reached.step and self.ranks.first_does(
            lambda: self.is_over or time.perf_counter() - self.last_saved >= self.saving_took / SAVING
        ):
            self.save()

    # State

    saved_step = 0
    best_is_saved = True

    def copy(self) -> Copy:
        return Copy(self.student, self.parameters)

    def save_best(self) -> None:
        """Save the best weights in a file of their own, before the state, so that the weights on disk are never worse
        than the state says."""
        if self.ranks.first_does(lambda: self.best_is_saved):
            return
        now = self.copy()
        self.best.put_back(self.student, self.parameters)
        self.keep(self.saved.best, self.student.state(self.ranks.first), self.best_reached)
        now.put_back(self.student, self.parameters)
        self.best_is_saved = True

    def save(self) -> None:
        """Save the state. After the last step that is only how far it came: best.safetensors has the result."""
        began, first = time.perf_counter(), self.ranks.first
        self.save_best()
        tensors = {} if self.is_over else self.student.state(first)
        for name, parameter in () if self.is_over else self.student.trained():
            state = self.optimizer.state[parameter]
            tensors |= {f"{moment}.{name}": whole(state[moment], first) for moment in MOMENTS if moment in state}
        self.reached.log = self.ranks.first_does(self.saved.digest_of_log)
        self.keep(self.saved.state, tensors, self.reached)
        self.saved_step, self.last_saved = self.reached.step, time.perf_counter()
        self.saving_took = self.last_saved - began

    def keep(self, path: Path, tensors: dict[str, Tensor], reached: Reached) -> None:
        self.ranks.first_does(lambda: self.saved.save(path, tensors, reached))

    def resume(self) -> None:
        """Resume an earlier, killed training."""
        if self.ranks.first_does(self.saved.reached) is None:
            self.ranks.first_does(lambda: self.saved.forget_after(-1))
            return
        best, self.best_reached = self.saved.load(self.saved.best)
        self.student.put(best, self.best_reached.layout)
        self.best = self.copy()
        tensors, reached = self.saved.load(self.saved.state)
        self.reached, self.saved_step = reached, reached.step
        if self.plan.lr is None:
            self.plan = replace(self.plan, lr=reached.rate)
        if not self.is_over:
            self.go_on_with(tensors)
        for attention in self.attentions:
            attention.step = reached.step
        self.ranks.first_does(lambda: self.saved.forget_after(reached.step, reached.log))

    def go_on_with(self, tensors: dict[str, Tensor]) -> None:
        """Restore weights and the optimizer's moments."""
        self.student.put(tensors, self.reached.layout)
        for name, parameter in self.student.trained():
            state = {"step": torch.tensor(float(self.reached.step))}
            for moment in MOMENTS:
                state[moment] = fill(torch.zeros_like(parameter), tensors[f"{moment}.{name}"])
            if self.device.type == "cuda":
                state["step"] = state["step"].to(self.device)
            self.optimizer.state[parameter] = state

    def take_best(self) -> Score:
        """Put the best weights into the student."""
        self.save_best()
        self.ranks.wait()
        self.best.put_back(self.student, self.parameters)
        return self.score()

    def log(self, step: int, **facts: Any) -> None:
        if self.ranks.first:
            self.saved.note(step=step, tokens=step * self.plan.step_tokens, **facts)
        flat = {k: v for k, v in facts.items() if isinstance(v, int | float)}
        flat |= {f"held_out/{k}": v for k, v in facts.get("held_out", {}).items()}
        self.accelerator.log(flat, step=step)


def micro_windows(student: Student, plan: UptrainPlan, ranks: Ranks, device: torch.device) -> int:
    """Windows per pass: on a GPU as many as a third of its free memory holds, on a CPU few, because of its caches."""
    mine = -(-plan.step_windows // ranks.size)
    if plan.micro_tokens:
        return max(1, min(mine, plan.micro_tokens // plan.window))
    if device.type != "cuda":
        return min(mine, max(1, 1024 // plan.window))
    a = student.architecture
    head = student.model.get_output_embeddings()
    classes = 0 if head is None else head.get_parameter("weight").shape[0]
    per_token = 20 * classes + a.layers * a.hidden_size * (8 if plan.checkpointing else 80)
    free = torch.cuda.mem_get_info(device)[0] / 3
    return max(1, min(mine, int(free / per_token / plan.window)))
