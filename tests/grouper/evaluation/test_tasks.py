"""Tasks by lm-evaluation-harness, on items made here, offline."""

import json
import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grouper import GrouperError
from grouper.calibration.source import DATA
from grouper.evaluation.tasks import TaskOptions, Tasks

pytest.importorskip("lm_eval")  # the extra `eval`

ITEMS = [
    {"context": "The state of the", "choices": ["Union", "xylophone quagga"], "gold": 0},
    {"context": "My fellow", "choices": ["zebra", "Americans", "of"], "gold": 1},
    {"context": "God bless the United", "choices": ["States", "and"], "gold": 1},
]
TASK = """task: sentences
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: gold
metric_list:
- {{metric: acc, aggregation: mean, higher_is_better: true}}
- {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "sentences.jsonl"
    data.write_text("\n".join(map(json.dumps, ITEMS)) + "\n")
    (folder / "sentences.yaml").write_text(TASK.format(data=json.dumps(str(data))))
    return folder


@pytest.fixture(scope="module")
def demo():
    model = AutoModelForCausalLM.from_pretrained(DATA / "demo", dtype=torch.float32, trust_remote_code=False).eval()
    return model, AutoTokenizer.from_pretrained(DATA / "demo", trust_remote_code=False)


def by_hand(model, tokenizer, item) -> tuple[int, int]:
    """The choice of the highest log-likelihood, and of the highest per byte."""
    sums = []
    for choice in item["choices"]:
        context, whole = (tokenizer(t)["input_ids"] for t in (item["context"], f"{item['context']} {choice}"))
        with torch.no_grad():
            logs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        sums.append(sum(logs[i - 1, whole[i]].item() for i in range(len(context), len(whole))))
    per_byte = [s / len(c) for s, c in zip(sums, item["choices"])]
    return int(np.argmax(sums)), int(np.argmax(per_byte))


def test_scores_are_those_by_hand_and_chance_stays_where_it_was(folder, demo, capfd):
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    tasks = Tasks(TaskOptions(("sentences",), folder))
    scores = [tasks.scores(*demo) for _ in range(2)]
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    right = np.mean([[best == item["gold"] for best in by_hand(*demo, item)] for item in ITEMS], axis=0)
    assert scores[0] == scores[1], "the same tasks on another model"
    assert (scores[0]["sentences,acc"], scores[0]["sentences,acc_norm"]) == pytest.approx(tuple(right))
    assert scores[0]["sentences,acc_stderr"] == pytest.approx(np.sqrt(right[0] * (1 - right[0]) / 2))
    assert set(scores[0]) == {f"sentences,{m}{e}" for m in ("acc", "acc_norm") for e in ("", "_stderr")}
    assert capfd.readouterr().out == ""


def test_items_can_be_limited(folder, demo):
    found = Tasks(TaskOptions(("sentences",), folder, limit=1)).scores(*demo)
    assert found["sentences,acc"] in (0.0, 1.0) and np.isnan(found["sentences,acc_stderr"])


def test_refusals(folder, tmp_path):
    with pytest.raises(GrouperError, match="knows no task 'sentence'"):
        Tasks(TaskOptions(("sentence",), folder))
    with pytest.raises(GrouperError, match="is no folder"):
        TaskOptions(("sentences",), tmp_path / "nowhere")
    one = {"names": ("a",)}
    for wrong in ({"names": ()}, {"names": ("a", "")}, {**one, "limit": 0}, {**one, "few_shot": -1}):
        with pytest.raises(GrouperError, match=r"`names` is empty|expected at least"):
            TaskOptions(**wrong)
    (tmp_path / "gone.yaml").write_text(TASK.format(data='"/nowhere/items.jsonl"').replace("sentences", "gone"))
    with pytest.raises(GrouperError, match="cannot load the items of gone"):
        Tasks(TaskOptions(("gone",), tmp_path))
    with pytest.raises(GrouperError, match="runs models of transformers, not a Linear"):
        Tasks(TaskOptions(("sentences",), folder)).scores(torch.nn.Linear(1, 1), None)
