"""Benchmark tasks by lm-evaluation-harness (the extra `eval`), on a model in memory.

Tasks are loaded once and scored on any number of models. The harness's global random states, progress bars and prints
are contained.
"""

import contextlib
import io
import logging
import os
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from grouper.errors import GrouperError
from grouper.evaluation.options import TaskOptions
from grouper.model.memory import free_memory

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel

LONGEST = 2048  # longest context plus continuation, in tokens
MOST_AT_ONCE = 64  # most requests per pass
RESAMPLES = 1000  # bootstrap samples for standard errors without a formula
SEED = 1234  # for few-shot examples, the harness's own


class Tasks:
    """Loaded tasks. Raises GrouperError if the harness is not installed, a task does not exist, or its items cannot be
    loaded."""

    def __init__(self, options: TaskOptions):
        self.options = options
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise GrouperError("tasks need lm-evaluation-harness: pip install 'kv-grouper[eval]'") from error
        with _quiet():
            own = TaskManager(include_path=str(options.folder), include_defaults=False) if options.folder else None
            if own is None or any(name not in own.task_index for name in options.names):
                own = TaskManager(include_path=options.folder and str(options.folder))  # listing all takes seconds
            unknown = [name for name in options.names if name not in own.task_index]
            if unknown:
                raise GrouperError(f"lm-evaluation-harness knows no task {unknown[0]!r}: `lm-eval ls tasks` lists them")
            try:
                self.loaded = own.load(list(options.names))
            except Exception as error:
                reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
                raise GrouperError(
                    f"cannot load the items of {', '.join(options.names)} ({type(error).__name__}: {reason})"
                ) from error
        for task in self.loaded["tasks"].values():
            if options.few_shot is not None:
                task.set_config(key="num_fewshot", value=options.few_shot)

    def scores(self, model: nn.Module, tokenizer: Any) -> dict[str, float]:
        """Scores by name: TASK,METRIC for the value and TASK,METRIC_stderr for its standard error (NaN if there is
        none)."""
        from lm_eval.evaluator import evaluate
        from transformers import PreTrainedModel

        if not isinstance(model, PreTrainedModel):
            raise GrouperError(f"lm-evaluation-harness runs models of transformers, not a {type(model).__name__}")
        os.environ.setdefault("DISABLE_MULTIPROC", "1")  # resample in this process
        training = model.training
        with _quiet(), torch.inference_mode():
            for task in self.loaded["tasks"].values():
                task.set_fewshot_seed(SEED)  # the same examples are drawn for every model
            try:
                found = evaluate(
                    lm=_harness_model(model, tokenizer), task_dict=self.loaded, limit=self.options.limit,
                    bootstrap_iters=RESAMPLES, log_samples=False,
                )  # fmt: skip
            except (ValueError, AssertionError, KeyError, RuntimeError) as error:
                raise GrouperError(f"lm-evaluation-harness stopped ({type(error).__name__}: {error})") from error
            finally:
                model.train(training)
        return dict(_columns(found["results"]))


def _columns(results: dict[str, dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Metrics of each task under the harness's names. The filter is omitted from the name if there is none."""
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, comma, which = key.partition(",")
            if not comma or metric == "alias":
                continue
            name = f"{task},{metric}" + ("" if which == "none" else f",{which}")
            yield name, float("nan") if isinstance(value, str) else float(value)


def _harness_model(model: "PreTrainedModel", tokenizer: Any) -> "LM":
    """The harness's view of a transformers model. No KV cache is used, except in tasks that generate text."""
    from lm_eval.models.huggingface import HFLM

    class Scored(HFLM):
        def loglikelihood(self, requests: "list[Instance]", disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            return super().loglikelihood(requests, disable_tqdm=True)

        def _model_call(
            self, inps: torch.Tensor, attn_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None
        ) -> torch.Tensor:
            return self.model(inps, use_cache=False).logits.float()

    longest = min(LONGEST, getattr(model.config, "max_position_embeddings", None) or LONGEST)
    size = batch_size(model, longest)
    return Scored(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=size, max_length=longest)


def batch_size(model: "PreTrainedModel", tokens: int) -> int:
    """Number of requests per pass: a quarter of free memory must hold their logits and log-probabilities."""
    device = next(model.parameters()).device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    vocabulary = model.get_output_embeddings().weight.shape[0]
    most = MOST_AT_ONCE if device.type == "cuda" else 8
    return max(1, min(most, int(free / 4 / (tokens * vocabulary * 12))))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the harness's progress bars, prints, warnings and usage reports, and restore the state of `random`
    afterwards."""
    import datasets

    logger, state, bars = logging.getLogger("lm_eval"), random.getstate(), datasets.are_progress_bars_disabled()
    level, told = logger.level, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        random.setstate(state)
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = told
        if not bars:
            datasets.enable_progress_bars()
