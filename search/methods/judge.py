"""AsymGQA's slow acceptance (arXiv 2406.14963): what the merged model loses on calibration text that was held out."""

import numpy as np

from fitness.perplexity import nll
from grouper.attention import Attention, MergedLayer
from grouper.layout import LayerLayout
from grouper.merging import mean
from grouper.regroup import Regrouper
from search.methods.candidate import Candidate
from search.methods.task import Judge

HELD_OUT = 4096  # tokens


class MergedLoss:
    """Nats per token with a layer's heads averaged in these groups, the layers before it in theirs of the same count."""

    def __init__(self, regrouper: Regrouper):
        self.model, self.architecture = regrouper.model, regrouper.architecture
        self.windows = regrouper.held_out(HELD_OUT)

    def judge(self, layer: int, before: list[list[Candidate]]) -> Judge:
        """before: per earlier layer, what the method found there."""
        earlier = [{c.kv_heads: c.labels for c in candidates} for candidates in before]
        attention, installed = self._read(layer), 0  # the KV-head count that earlier layers have now

        def judged(rows: np.ndarray) -> np.ndarray:
            nonlocal installed
            losses = []
            for row in rows:
                count = len(set(row.tolist()))
                if count != installed:
                    self.model.restore()
                    for index, labels in enumerate(earlier):
                        self._install(index, self._read(index), labels[count])
                    installed = count
                self._install(layer, attention, row)
                losses.append(nll(self.model.model, self.windows))
            return np.array(losses)

        return judged

    def _read(self, layer: int) -> Attention:
        return self.architecture.read(self.model.checkpoint, layer)

    def _install(self, layer: int, attention: Attention, labels: np.ndarray) -> None:
        heads = LayerLayout.from_labels(labels.tolist(), self.architecture.queries_per_kv_head)
        self.model.install(layer, MergedLayer(mean.merge(attention, heads)), heads)
