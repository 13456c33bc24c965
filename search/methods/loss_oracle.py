"""AsymGQA's slow acceptance (arXiv 2406.14963): the merged model's loss on held-out calibration text."""

import time
from contextlib import ExitStack

import numpy as np

from grouper.attention import Merged, MergedLayer
from grouper.compress import Regrouper
from grouper.errors import GrouperError
from grouper.evaluation.perplexity import nll
from grouper.layout import LayerLayout
from grouper.merging import MEAN
from grouper.running.in_memory import InMemoryModel
from search.methods.candidate import Candidate
from search.methods.task import Judge

HELD_OUT = 4096  # tokens


class MergedLoss:
    """Nats per token of the model with one layer merged by the mean under given groupings. The layers before it have
    their groupings of the same count.

    Used as a context manager: inside it, the merged earlier layers are kept from one step to the next.
    """

    def __init__(self, regrouper: Regrouper):
        self.regrouper, self.architecture = regrouper, regrouper.architecture
        if not isinstance(regrouper.model, InMemoryModel):
            raise GrouperError("steps are judged by a whole model's loss, and memory does not hold it: see --memory")
        self.model = regrouper.model
        self.windows = regrouper.held_out(HELD_OUT)
        self._before = ExitStack()
        self._installed: tuple | None = None  # layers and KV-head count that `_before` holds

    def __enter__(self) -> "MergedLoss":
        return self

    def __exit__(self, *_error: object) -> None:
        self._before.close()

    def judge(self, layer: int, before: list[list[Candidate]]) -> Judge:
        """A judge of this layer's groupings. before: candidates that the method found, for each earlier layer."""
        earlier = [{c.kv_heads: c.layout for c in candidates} for candidates in before]
        judge = object()

        def judged(rows: np.ndarray) -> np.ndarray:
            losses = []
            for row in rows:
                count = len(set(row.tolist()))
                if self._installed != (judge, count):
                    self._before.close()
                    layouts = {index: by_count[count] for index, by_count in enumerate(earlier)}
                    self._before.enter_context(self.model.installed(layouts, self._averaged(layouts)))
                    self._installed = (judge, count)
                layout = LayerLayout.from_labels(row.tolist(), self.architecture.queries_per_kv_head)
                with self.model.installed({layer: layout}, self._averaged({layer: layout})) as model:
                    losses.append(nll(model, self.windows))
            return np.array(losses)

        return judged

    def seconds(self) -> float:
        """Seconds to judge one grouping, measured on the original model; the first of two passes is a warm-up."""
        nll(self.model.model, self.windows)
        began = time.perf_counter()
        nll(self.model.model, self.windows)
        return time.perf_counter() - began

    def _averaged(self, layouts: dict[int, LayerLayout]) -> Merged:
        def mean(layer: int) -> MergedLayer:
            attention = self.architecture.read(self.model.checkpoint, layer)
            return MergedLayer(MEAN.merge(attention, layouts[layer]))

        return mean
