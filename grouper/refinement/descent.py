"""Adam on the tensors of one layer. On a GPU a whole step is a single CUDA graph if possible."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import Tensor

from grouper.progress import Progress
from grouper.ranks import ALONE, Ranks
from grouper.refinement.courses import Course
from grouper.refinement.summing import SummedGradients

WARM_UP = 3  # steps that run individually before they are captured
TOLD = 16  # steps between two losses that are read back from a GPU, because reading waits for it


class Descent:
    """Steps of Adam on the tensors in `rates`. Each tensor has its own learning rate, which falls linearly to 0. All
    ranks take the same step. turns: number of the course for each step."""

    def __init__(
        self,
        rates: list[tuple[Tensor, float]],
        courses: Sequence[Course],
        turns: Sequence[int],
        device: str,
        ranks: Ranks = ALONE,
    ):
        self.courses, self.turns, self.device, self.ranks = courses, turns, device, ranks
        self.tensors = [t for t, r in rates if r > 0]
        self.gpu = "cuda" in str(device)
        groups = [{"params": [t], "lr": torch.tensor(r, device=device) if self.gpu else r} for t, r in rates if r > 0]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95), fused=True, capturable=self.gpu)
        self.peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.loss = torch.zeros((), device=device)
        self.can_capture = self.gpu
        self.summed = SummedGradients(self.tensors, ranks, torch.bfloat16 if self.gpu else torch.float32)

    def run(self, tell: Progress) -> None:
        if not self.gpu:
            self._run(tell)
            return
        with torch.cuda.device(self.device), _exactly():
            self._run(tell)

    def _run(self, tell: Progress) -> None:
        steps = len(self.turns)
        for step, turn in enumerate(self.turns):
            course = self.courses[turn]
            self._set_rates(1 - step / steps)
            course.take_up()
            if course.graph is not None:
                course.graph.replay()
            else:
                self._step_as_exactly_as_it_goes(course)
                if self.can_capture and course.alike and course.taken == WARM_UP:
                    self._capture(course)
            if not self.gpu or (step + 1) % TOLD == 0 or step + 1 == steps:
                tell(step + 1, steps, f"error {self.loss.item():.4f}")

    def _set_rates(self, share: float) -> None:
        for group, peak in zip(self.optimizer.param_groups, self.peaks):
            if self.gpu:
                group["lr"].fill_(peak * share)
            else:
                group["lr"] = peak * share

    def _step_as_exactly_as_it_goes(self, course: Course) -> None:
        """Take a step with deterministic operations where they exist. Operations without a deterministic form run as
        they are."""
        try:
            self._step(course)
        except RuntimeError as error:
            if "deterministic" not in str(error):
                raise
            torch.use_deterministic_algorithms(True, warn_only=True)
            self._step(course)

    def _step(self, course: Course) -> None:
        self.optimizer.zero_grad()  # None, so that backward stores the gradient instead of adding it up
        together = course.all_see and not self.ranks.alone
        if course.share:
            loss = course.share * course.loss()
            with self.summed.during_backward() if together else nullcontext():
                loss.backward()
            self.loss.copy_(loss.detach())
        else:
            self.loss.zero_()
        if not self.ranks.alone:
            if not together:
                self.summed.afterwards()
            self.ranks.add_up(self.loss)
        self.optimizer.step()

    def _capture(self, course: Course) -> None:
        """Capture the step as one CUDA graph. Layers whose computation depends on their values (experts) continue step
        by step."""
        torch.cuda.synchronize()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        # the watchdog thread of the communication library makes calls meanwhile, which are not part of the step
        with suppress(RuntimeError), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._step(course)
            course.graph = graph
        self.can_capture = course.graph is not None
        torch.cuda.set_stream(stream)  # a failed capture keeps its own stream
        torch.cuda.synchronize()


@contextmanager
def _exactly() -> Iterator[None]:
    """Refuse operations without a deterministic form until the block ends, if deterministic ones were preferred before.
    Only then does the backward pass of flash attention use its deterministic form."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if before[0]:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
