"""Layers, each with chance and tables of its own."""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_tables import random_pairs, task_of

from fitness import FITNESSES
from grouper import Checkpoint, GrouperError
from grouper.families.architecture import Architecture
from search.engine import layers
from search.engine.layers import LayerSearch
from search.engine.parallelism import parsed_jobs
from search.methods.baselines import Random
from search.methods.method import Method
from search.methods.registry import METHODS
from search.optimise.partition import Partition
from search.options import SearchOptions

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}


def searching(model, *methods: Method) -> LayerSearch:
    checkpoint = Checkpoint.open(model)
    architecture = Architecture.of(checkpoint.config)
    return LayerSearch(checkpoint, architecture, FITNESSES["weight"], list(methods), SearchOptions(), "cpu")


def test_every_layer_and_every_method_has_chance_of_its_own(reader):
    task = task_of(random_pairs(0, 12))
    found = [
        [c.layout for c in searching(reader, Random(name)).search(task, layer)[name]]
        for layer, name in ((0, "a"), (1, "a"), (0, "b"), (0, "a"))
    ]
    assert found[0] == found[3] and found[0] != found[1] and found[0] != found[2]


def test_tables_of_queries_are_those_of_queries(reader):
    work = searching(reader, METHODS["gqkva"])
    task, attention = work.task(0), work.architecture.read(work.checkpoint, 0)
    assert np.allclose(task.parts["q"].pairs, FITNESSES["weight"].tables(attention, None, "q").pairs)
    assert not np.allclose(task.parts["q"].pairs, task.parts["pairs"].pairs)


def test_a_part_that_there_is_not_is_refused(reader):
    class Mistyped(Random):
        parts = ("vk",)

    with pytest.raises(GrouperError, match="tables of 'vk'"):
        searching(reader, Mistyped("mistyped")).task(0)


def test_candidates_take_the_query_heads_along():
    task = replace(task_of(random_pairs(0, 2)), queries_per_kv_head=2)
    (candidate,) = task.candidates([Partition(np.array([0, 1]), 0.0)])
    assert candidate.layout.k.readers == ((0, 1), (2, 3))


def test_jobs_are_a_number_or_what_cores_and_memory_hold(monkeypatch):
    small = Architecture.of(LLAMA)
    large = replace(small, layers=32, query_heads=32, head_dim=128, hidden_size=4096)
    monkeypatch.setattr("search.engine.parallelism.cores", lambda: 8)
    monkeypatch.setattr("search.engine.parallelism.free_memory", lambda: 1e12)
    assert parsed_jobs("auto", small, "cpu") == 1 and parsed_jobs("auto", large, "cpu") == 8
    monkeypatch.setattr("search.engine.parallelism.free_memory", lambda: 13e9)
    assert parsed_jobs("auto", large, "cpu") == 2 and parsed_jobs("3", small, "cpu") == 3
    for wrong in ("0", "-1", "many", "1.5"):
        with pytest.raises(GrouperError, match="expected auto, or a number"):
            parsed_jobs(wrong, small, "cpu")


@pytest.mark.parametrize("processes", [True, False])
def test_layers_that_began_early_are_searched_once_and_all_are_kept(tmp_path, processes):
    asked: list[tuple[int, Path | None]] = []

    def work(layer: int, moments: Path | None, report=None) -> dict:
        asked.append((layer, moments))
        return {"of": layer}

    with ThreadPoolExecutor(2) as pool:
        kept: dict[int, dict] = {}
        quiet: list[int] = []

        def keep(layer: int, found: dict, quietly: bool = False) -> None:
            kept[layer] = found
            quiet.extend([layer] * quietly)

        side = layers._SideBySide(work, [1, 2], pool if processes else None, keep)
        side.begin(0, tmp_path / "0")  # another rank's
        side.begin(2, tmp_path / "2")
        wait(side._running)
        side.begin(0, tmp_path / "0")
        assert kept == ({2: {"of": 2}} if processes else {})  # it is kept as soon as the next one begins
        side.moments = {1: tmp_path / "1", 2: tmp_path / "2"}
        work.architecture, work.options = Architecture.of({**LLAMA, "num_hidden_layers": 3}), SearchOptions()
        side.finish({}, print)
    assert sorted(asked) == [(1, tmp_path / "1"), (2, tmp_path / "2")]
    assert kept == {1: {"of": 1}, 2: {"of": 2}} and quiet == ([2] if processes else [])


def test_layers_that_are_done_are_kept_when_a_process_is_killed():
    def done(layer: int, _moments: Path | None) -> dict:
        if layer == 1:
            raise BrokenProcessPool("a process was terminated abruptly")
        return {"of": layer}

    done.architecture, done.options = Architecture.of({**LLAMA, "num_hidden_layers": 3}), SearchOptions()
    kept: dict[int, dict] = {}
    with ThreadPoolExecutor(1) as pool:
        side = layers._SideBySide(
            done, [0, 1, 2], pool, lambda layer, found, quietly=False: kept.update({layer: found})
        )
        with pytest.raises(BrokenProcessPool):
            side.finish({}, print)
    assert kept == {0: {"of": 0}, 2: {"of": 2}}


def test_layers_are_kept_when_no_more_can_be_begun():
    class Broken:
        def submit(self, work, layer: int, moments: Path | None) -> Future:
            if layer == 1:
                raise BrokenProcessPool("a process was terminated abruptly")
            future: Future = Future()
            future.set_result({"of": layer})
            return future

    kept: dict[int, dict] = {}
    side = layers._SideBySide(None, [0, 1], Broken(), lambda layer, found, quietly=False: kept.update({layer: found}))
    with pytest.raises(BrokenProcessPool):
        side.finish({}, print)
    assert kept == {0: {"of": 0}}
