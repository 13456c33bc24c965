"""Benchmark scores in the format that the Hub reads: .eval_results/TASK.yaml in the repository."""

from pathlib import Path

import yaml

BENCHMARKS = {  # task of lm-evaluation-harness -> the benchmark's dataset on the Hub
    "arc_challenge": "allenai/ai2_arc", "arc_easy": "allenai/ai2_arc", "boolq": "google/boolq", "gsm8k": "openai/gsm8k",
    "hellaswag": "Rowan/hellaswag", "mmlu": "cais/mmlu", "openbookqa": "allenai/openbookqa",
    "winogrande": "allenai/winogrande",
}  # fmt: skip


def write_eval_results(folder: Path, measured: dict[str, list[float | None]]) -> list[str]:
    """Write the scores that the Hub knows and return the names of the files. measured: "TASK,METRIC" -> (score of the
    original, of this model), named like the task columns of pareto.csv; other measurements are skipped."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    written = []
    for name, (_, value) in measured.items():
        task, _, metric = name.partition(",")
        if task not in BENCHMARKS or not metric or value is None:
            continue
        notes = f"lm-evaluation-harness, {metric}"
        entry = EvalResultEntry(dataset_id=BENCHMARKS[task], task_id=task, value=value, notes=notes)
        path = folder / ".eval_results" / f"{task}_{metric}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=True), encoding="utf-8")
        written.append(path.name)
    return written
