"""Benchmark tasks by lm-evaluation-harness (the extra `eval`), on a model that is in memory.

Tasks are loaded once and scored on as many models as there are. The harness's global random states, its bars and its
prints are kept to itself.
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

LONGEST = 2048  # tokens of context and continuation
MOST_AT_ONCE = 64  # requests
RESAMPLES = 1000  # for standard errors that have no formula
SEED = 1234  # of few-shot examples, the harness's own


class Tasks:
    """Loaded tasks. Raises GrouperError where there is no harness, no such task, or its items cannot be had."""

    def __init__(self, options: TaskOptions):
        self.options = options
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise GrouperError("tasks need lm-evaluation-harness: pip install 'kv-grouper[eval]'") from error
        with _quiet():
            own = TaskManager(include_path=str(options.folder), include_defaults=False) if options.folder else None
            if own is None or any(name not in own.task_index for name in options.names):
                own = TaskManager(include_path=options.folder and str(options.folder))  # its own take seconds to list
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
        """ "TASK,METRIC" -> its value, "TASK,METRIC_stderr" -> its standard error (NaN where there is none)."""
        from lm_eval.evaluator import evaluate
        from transformers import PreTrainedModel

        if not isinstance(model, PreTrainedModel):
            raise GrouperError(f"lm-evaluation-harness runs models of transformers, not a {type(model).__name__}")
        os.environ.setdefault("DISABLE_MULTIPROC", "1")  # resampling in this process
        training = model.training
        with _quiet(), torch.inference_mode():
            for task in self.loaded["tasks"].values():
                task.set_fewshot_seed(SEED)  # the examples are drawn anew for every model
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
    """Of each task, by the harness's names: the metrics, less the filter where there is none."""
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, comma, which = key.partition(",")
            if not comma or metric == "alias":
                continue
            name = f"{task},{metric}" + ("" if which == "none" else f",{which}")
            yield name, float("nan") if isinstance(value, str) else float(value)


def _harness_model(model: "PreTrainedModel", tokenizer: Any) -> "LM":
    """The harness's view of a transformers model. It makes no KV cache: nothing is generated token by token but by
    tasks that ask for it."""
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
    """Requests at a time: as many as a quarter of the free memory holds logits of, with their logarithms."""
    device = next(model.parameters()).device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    vocabulary = model.get_output_embeddings().weight.shape[0]
    most = MOST_AT_ONCE if device.type == "cuda" else 8
    return max(1, min(most, int(free / 4 / (tokens * vocabulary * 12))))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars, prints and warnings of the harness's; its draws from `random` are undone; nobody is told of a use."""
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
