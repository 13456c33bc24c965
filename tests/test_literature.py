"""bench/literature.py: the papers' rules, by hand and by the harness."""

import json
import math
import random
import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from tiny_models import ROOT

from grouper import Checkpoint, GrouperError
from grouper.calibration.text import load_tokenizer
from grouper.evaluation.options import TaskOptions
from grouper.evaluation.perplexity import nll
from grouper.evaluation.tasks import Tasks
from grouper.running.in_memory import InMemoryModel

sys.path.append(str(ROOT / "bench"))
import benchmark_items
import literature
import longbench
import ruler
import six_tasks

CHOICES = [
    {"context": "Question: what is bread?\nAnswer:", "choices": ["food", "a stone of the road", "war"], "gold": 0},
    {"context": "The people of this nation", "choices": ["are free", "sleep"], "gold": 1},
    {"context": "We shall", "choices": ["not", "overcome it together"], "gold": 1},
]
ENDINGS = [{"contexts": ["The lamp fell on Ann so Ann", "The lamp fell on Ann so Joe"], "ending": "cried.", "gold": 0}]


@pytest.fixture(scope="module")
def small():
    checkpoint = Checkpoint.open("demo").local()
    return InMemoryModel(checkpoint).model, load_tokenizer(checkpoint)


def write_items(folder, tasks: dict) -> None:
    """Items with their YAML, as benchmark_items.convert writes them."""
    for task, items in tasks.items():
        data = folder / f"{task}.jsonl"
        data.write_text("".join(json.dumps(item) + "\n" for item in items))
        kind, fields, metrics = benchmark_items.SHAPES.get(
            task, ("multiple_choice", benchmark_items.CHOICES, (benchmark_items.ACC, benchmark_items.ACC_NORM))
        )
        known = {"task": task, "data": json.dumps(str(data)), "kind": kind, "fields": fields}
        (folder / f"{task}.yaml").write_text(benchmark_items.TASK.format(**known, metrics="\n".join(metrics)))


def test_accuracies_are_those_of_the_harness(small, tmp_path):
    write_items(tmp_path, {"piqa": CHOICES, "winogrande": ENDINGS})
    harness = Tasks(TaskOptions(("piqa", "winogrande"), tmp_path, None, 0)).scores(*small)
    assert six_tasks.accuracy(*small, CHOICES, tokens=64) == pytest.approx(harness["piqa,acc_norm"])
    assert six_tasks.accuracy(*small, ENDINGS, tokens=64) == pytest.approx(harness["winogrande,acc"])


def test_a_choice_has_the_same_score_alone_and_padded(small):
    model, tokenizer = small
    requests = [six_tasks.request(tokenizer, *pair) for item in CHOICES for pair in six_tasks.choices(item)]
    together = six_tasks.log_likelihoods(model, requests, tokens=10**6)
    alone = torch.cat([six_tasks.log_likelihoods(model, [one], tokens=1) for one in requests])
    assert torch.allclose(together, alone, atol=1e-4) and len(set(together.tolist())) == len(requests)
    ids, count = requests[1]
    logits = model(torch.tensor([ids])).logits[0, -count - 1 : -1].log_softmax(-1)
    wanted = sum(logits[i, token].item() for i, token in enumerate(ids[-count:]))
    assert together[1].item() == pytest.approx(wanted, abs=1e-4)


def test_perplexity_is_of_whole_windows_of_2048(small, tmp_path, monkeypatch):
    monkeypatch.setattr(literature, "WINDOW", 64)
    (tmp_path / "a.txt").write_text("One line of words.\n\n = Title = \n" * 40)
    args = Namespace(text=tmp_path / "a.txt", limit=3, batch_tokens=128)
    found = literature.PROTOCOLS["wikitext2"](*small, args)
    assert literature.wikitext2(args).startswith("One line of words.\n\n\n\n\n = Title = \n\n\n")  # rows end in \n
    ids = torch.tensor(small[1](literature.wikitext2(args))["input_ids"])[: 3 * 64].view(3, 64)
    assert found["nats"] == pytest.approx(nll(small[0], ids), abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["nats"])) and found["windows"] == 3
    args.text = tmp_path / "short.txt"
    args.text.write_text("few")
    with pytest.raises(GrouperError, match="expected at least one window"):
        literature.PROTOCOLS["wikitext2"](*small, args)


def test_c4_joins_its_documents_by_spaces(tmp_path):
    (tmp_path / "c4.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "c4.txt").write_text("a\n\nb")
    for name in ("c4.jsonl", "c4.txt"):
        assert literature.c4(Namespace(text=tmp_path / name)) == "a b"


def test_what_is_not_there_is_said(tmp_path, small):
    args = Namespace(text=tmp_path, limit=None, batch_tokens=64, lengths="64", seed=0)
    with pytest.raises(GrouperError, match=r"openbookqa\.jsonl is not there"):
        literature.PROTOCOLS["six-tasks"](*small, args)
    with pytest.raises(GrouperError, match=r"triviaqa\.jsonl is not there"):
        literature.PROTOCOLS["longbench"](*small, args)
    with pytest.raises(GrouperError, match="longbench needs a checkout"):
        literature.PROTOCOLS["longbench"](*small, Namespace(text=None))


@pytest.mark.parametrize("task", ruler.TASKS)
def test_needles_fit_and_are_hidden_whole(small, task):
    tokenizer, chance = small[1], random.Random(3)
    one = ruler.example(task, chance)
    hay = [f"Straw number {i} lies here." for i in range(40)]
    text = ruler.prompt(one, task, tokenizer, hay, 900, chance)
    size = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert 900 - 120 < size + ruler.ANSWER <= 900
    assert all(needle in text for needle in one.needles) and text.endswith(one.begun)
    assert len(one.wanted) == {"single": 1, "multi-key": 1, "multi-value": 4, "tracking": 5}[task]
    assert len(one.needles) == {"single": 1, "multi-key": 4, "multi-value": 4, "tracking": 5}[task]
    if task == "tracking":
        places = [text.rindex(needle) for needle in one.needles]
        assert places == sorted(places) and all(name not in one.begun for name in one.wanted)
    again = ruler.example(task, random.Random(3))
    assert again == one


def test_a_score_is_the_share_found():
    one = ruler.Example([], "", "", ["12", "Ab", "77", "x"])
    assert ruler.score("It is 12, and ab.", one) == 0.5


def test_answers_in_batches_are_those_of_one_alone(small):
    prompts = ["The people", "We have, fellow citizens, a long way to go, and", "I"]
    together = ruler.answers(*small, prompts, tokens=10**6, most=6)
    assert together == [ruler.answers(*small, [prompt], tokens=1, most=6)[0] for prompt in prompts]


def test_scores_of_longbench_by_hand():
    assert longbench.f1("The cat sat.", "a cat") == pytest.approx(2 / 3)  # one of [cat, sat], one of [cat]
    assert longbench.rouge_l("a b c d", "a x c") == pytest.approx(4 / 7)  # "a c", of 4 and of 3 words
    assert longbench.rouge_l("", "a") == longbench.f1("b", "a") == 0
    assert longbench.same_line("# why\nx = 1\ny = 2", "x = 1") == 1
    assert longbench.same_class("It is a Person or a City", "City", ["City", "Person", "Cit"]) == 0.5
    assert longbench.best("trec", "\nCity\nPerson", {"answers": ["City"], "all_classes": ["City", "Person"]}) == 1


def test_longbench_reads_a_checkout(small, tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "data").mkdir()
    prompts = dict.fromkeys(longbench.TASKS, "{context}{input}")
    (tmp_path / "config" / "dataset2prompt.json").write_text(json.dumps(prompts))
    (tmp_path / "config" / "dataset2maxlen.json").write_text(json.dumps(dict.fromkeys(longbench.TASKS, 3)))
    row = {"context": "We the people ", "input": "of the", "answers": ["United States"], "all_classes": ["United"]}
    for task in longbench.TASKS:
        (tmp_path / "data" / f"{task}.jsonl").write_text(json.dumps(row) + "\n")
    found = longbench.longbench(*small, tmp_path, None, 512)
    assert set(found) == {*longbench.TASKS, "mean"} and all(0 <= value <= 100 for value in found.values())
    ids = SimpleNamespace(input=list(range(20, 60)))
    text = small[1].decode(ids.input)
    cut = longbench.shortened(small[1], text, 10)
    assert cut == small[1].decode(ids.input[:5]) + small[1].decode(ids.input[-5:])


def test_the_table_has_the_published_rows_of_its_protocol(tmp_path):
    row = {"model": "half", "kv_kib": 6.0, "scores": {"perplexity": 12.345678, "windows": 3}, "seconds": 2.4}
    found = {"protocol": "c4", "dtype": "bfloat16", "device": "H", "text": {"name": "t", "sha256": "ab"}, "rows": [row]}
    lines = literature.table(found).split("\n")
    assert "| half | 6 | 12.35 | 3 | 2 |" in lines
    assert "| Llama-2-7B | 50% | ReCalKV | a latent cache | 8.14 | ReCalKV, arXiv 2505.24357 |" in lines
    known = json.loads(literature.PUBLISHED.read_text())
    assert sum("| Palu |" in line for line in lines) == sum(r["method"] == "Palu" and "c4" in r for r in known) == 1
    assert all(r["source"] and set(r) & set(literature.PROTOCOLS) for r in known)
