"""Alternative ways to refine, compared with Grouper's: KL and nats on text that neither has seen.

    python bench/refine_further.py                            # every way, on one core ten minutes for each KV ratio
    python bench/refine_further.py --scope block --tokens 32768 --ways steps:1.25,kl:1:0.5:0.3,kl:3:0.5:0.1

Layouts: the bundled model in equal groups from `grouper search`, merged spectrally. All steps use the first four fifths
of addresses-1977-2016.txt, and the result is measured on the last fifth. Ways:

    steps:F        F times as many steps
    pairs:F        layers i and i + 1 are trained together, F times as many steps, to match the stream behind i + 1
    kl:K:F:R       after refinement the last K layers are trained together by the KL of the model's logits from the
                   original's, F times as many steps at R times the rate
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from grouper import Calibration, Checkpoint, HeadLayout, RefineOptions, TextSource
from grouper.attention import MergedLayer
from grouper.calibration.text import shuffled_passes, text_of
from grouper.compress import Regrouper
from grouper.divergence import kl_divergence
from grouper.evaluation.closeness import Original, measured, walked
from grouper.merging import MERGES
from grouper.refinement.courses import Drawn, turns_of
from grouper.refinement.descent import Descent
from grouper.refinement.layer import REST, LayerWorker
from grouper.refinement.objective import relative, size_of
from grouper.refinement.options import RefinePlan
from grouper.refinement.refine import deterministic, refine_layers
from grouper.running.stub_layers import stubs
from grouper.running.walk import Walk, run_layer
from search.runs.folder import RunFolder

WAYS = "steps:1.25,pairs:0.5,kl:1:0.5:0.3,kl:2:0.5:0.2,kl:3:0.5:0.1,kl:1:1:1,kl:3:0.5:1"
Loss = Callable[[Tensor, Tensor], Tensor]  # of two residual streams after the last trained layer: ours, the original's


class Further:
    """Refinement of one layout. start, by_default and the result of a way: weights of each layer. original[i]: residual
    streams [n, tokens, D] before layer i, one for each text; the last entry is after the last layer."""

    def __init__(self, regrouper: Regrouper, layout: HeadLayout, plan: RefinePlan):
        self.model, self.layout, self.plan = regrouper.model, layout, plan
        self.layers = range(len(layout.layers))
        merged = regrouper.merged(layout, MERGES["spectral"].before_refinement())
        self.start, self.texts = [merged(i) for i in self.layers], regrouper.texts(plan)
        self.steps = plan.steps_for(sum(text.numel() for text in self.texts))
        self.walks = [Walk(self.model, t, max(1, plan.batch_tokens // t.shape[1])).start() for t in self.texts]
        self.original = [[walk.stream.clone() for walk in self.walks]]
        for i in self.layers:
            self.original.append(self.after(i, self.original[-1]))
        began = time.process_time()
        self.by_default = self.layerwise(1)
        self.seconds = time.process_time() - began

    def way(self, name: str) -> list[MergedLayer]:
        kind, *numbers = name.split(":")
        return {"steps": self.layerwise, "pairs": self.pairs, "kl": self.kl}[kind](*map(float, numbers))

    def layerwise(self, share: float) -> list[MergedLayer]:
        plan = replace(self.plan, steps=round(share * self.steps))
        layers = refine_layers(self.model, self.layout, self.start.__getitem__, self.texts, plan)
        return [layers(i) for i in self.layers]

    def pairs(self, share: float) -> list[MergedLayer]:
        done, given = list(self.start), self.original[0]
        for i in self.layers:
            done = self.trained(
                self.layers[i : i + 2], done, given, share, 1.0, lambda got, wanted: relative(got - wanted, wanted)
            )
            given = self.after(i, given, done[i])
        return done

    def kl(self, count: float, share: float, rate: float) -> list[MergedLayer]:
        given, count = self.original[0], int(count)
        for i in self.layers[:-count]:
            given = self.after(i, given, self.by_default[i])
        return self.trained(self.layers[-count:], self.by_default, given, share, rate, self.divergence)

    def divergence(self, got: Tensor, wanted: Tensor) -> Tensor:
        logits = []
        for stream in (got, wanted):
            with stubs(self.model, lambda _place, _inputs, _named, stream=stream: stream):
                logits.append(self.model.model(input_ids=torch.zeros(stream.shape[:2], dtype=int)).logits)
        return kl_divergence(*logits).mean()

    def worker(self, layer: int) -> LayerWorker:
        step = self.walks[0].at(self.model.architecture.places[layer])
        return LayerWorker(step, "cpu", self.plan).take_up(step.sites[0], self.layout.layers[layer])

    @torch.no_grad()
    def after(self, layer: int, streams: Sequence[Tensor], done: MergedLayer | None = None) -> list[Tensor]:
        """Residual streams after a layer: the original, or one with these weights."""
        worker, found = self.worker(layer), []
        if done:
            worker.set(done)
        module = worker.regrouped if done else worker.original
        for text, stream in enumerate(streams):
            parts = [run_layer(module, stream[part], self.arguments(layer, text)) for part in self.walks[text].parts]
            found.append(torch.cat(parts))
        return found

    def arguments(self, layer: int, text: int) -> tuple:
        return self.walks[text].at(self.model.architecture.places[layer]).arguments_of(0)

    def trained(
        self, layers: range, start: list[MergedLayer], given: list[Tensor], share: float, rate: float, loss: Loss
    ) -> list[MergedLayer]:
        """The layers of `start`, with `layers` trained together. share: steps relative to the default. rate: learning
        rate relative to the default. given: residual streams before the first of them."""
        workers = {i: self.worker(i) for i in layers}
        for i in layers:
            workers[i].set(start[i])
        parts = {i: workers[i].trained(start[i].attention) for i in layers}
        peaks = rate * self.plan.rate, rate * self.plan.rate * REST  # of attention, of all other weights
        first: dict[int, float] = {}  # first loss on each text, by which later ones are divided
        each = ((t, peak) for part in parts.values() for ts, peak in zip(part, peaks) for t in ts.values())
        rates = [(t, peak * size_of(t)) for t, peak in each]

        def course(text: int, steps: int) -> Drawn:
            def error(stream: Tensor, wanted: Tensor) -> Tensor:
                for i, (attention, others) in parts.items():
                    state = {**workers[i].tensors(replace(start[i].attention, **attention)), **others}
                    call = partial(functional_call, workers[i].regrouped, state)
                    module = lambda *given, call=call, **named: call(given, named)  # noqa: E731
                    stream = run_layer(module, stream, self.arguments(i, text))
                value = loss(stream, wanted)
                return value / first.setdefault(text, value.item())

            size = max(1, self.plan.batch_tokens // self.texts[text].shape[1])
            order = shuffled_passes(len(given[text]), size, steps, self.plan.seed)
            return Drawn(error, given[text], self.original[layers[-1] + 1][text], order, "cpu")

        turns = turns_of([text.numel() for text in self.texts], round(share * self.steps))
        courses = [course(text, turns.count(text)) for text in range(len(self.texts))]
        with deterministic():
            Descent(rates, courses, turns, "cpu").run(lambda *_told: None)
        done = list(start)
        for i, (attention, others) in parts.items():
            weights = replace(start[i].attention, **{n: t.detach() for n, t in attention.items()})
            done[i] = MergedLayer(weights, {n: t.detach() for n, t in others.items()})
        return done

    def judged(self, original: Original, layers: list[MergedLayer]) -> tuple[np.ndarray, np.ndarray]:
        """KL and nats over the original, for each window."""
        stream = walked(self.model, original.batch, (self.layout, layers.__getitem__))
        found = measured(original, self.model, stream)
        return found["kl"], found["nll"] - original.found["nll"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", default=WAYS)
    parser.add_argument("--scope", default="attention")
    parser.add_argument("--tokens", type=int, default=16_384)
    args = parser.parse_args()
    text = (Path(__file__).parents[1] / "grouper" / "data" / "addresses-1977-2016.txt").read_text()
    cut = text.rfind("\n\n", 0, len(text) * 4 // 5)
    with tempfile.TemporaryDirectory() as temporary:
        seen, judges, run = (Path(temporary) / name for name in ("seen.txt", "judges.txt", "run"))
        seen.write_text(text[:cut])
        judges.write_text(text[cut:])
        search = [sys.executable, "-m", "cli", "search", "demo", "--method", "qcqa-ec", "--text", seen, "-o", run]
        subprocess.run(search, check=True, capture_output=True)
        regrouper = Regrouper(Checkpoint.open("demo"), Calibration(TextSource(str(seen)), window=512))
        original = Original.of(regrouper.model, text_of(regrouper.checkpoint, TextSource(str(judges)), 512, 96))
        plan, folder = RefineOptions(args.scope, tokens=args.tokens).plan("cpu"), RunFolder.open(run)
        print("| KV | way | KL | change | nats | change | time |\n|" + " --- |" * 7)
        table = folder.front().table
        for ratio in (0.5, 0.125):
            rows = table[(table.method == "qcqa-ec") & (table.deploy == "stock") & np.isclose(table.kv_ratio, ratio)]
            further = Further(regrouper, folder.layout(int(rows.iloc[0].layout)), plan)
            told(ratio, further, original, args.ways.split(","))


def told(ratio: float, further: Further, original: Original, ways: Sequence[str]) -> None:
    """Print a row for each way: its change of KL and nats with standard errors over windows, and its time relative to
    the default's."""
    default = further.judged(original, further.by_default)
    print(f"| {ratio} | default | {default[0].mean():.4f} | | {default[1].mean():+.4f} | | {further.seconds:.0f} s |")
    for way in ways:
        began = time.process_time()
        layers = further.way(way)
        seconds = time.process_time() - began + (further.seconds if way.startswith("kl") else 0)
        row = [f"| {ratio} | {way}"]
        for before, after in zip(default, further.judged(original, layers)):
            change = (after - before) / before.mean()
            row += [f"{after.mean():+.4f}", f"{change.mean():+.1%} ± {change.std(ddof=1) / len(change) ** 0.5:.1%}"]
        print(" | ".join([*row, f"x{seconds / further.seconds:.2f} |"]), flush=True)


if __name__ == "__main__":
    main()
