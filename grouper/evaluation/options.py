"""Options of tasks of lm-evaluation-harness."""

from dataclasses import dataclass
from pathlib import Path

from grouper.errors import GrouperError
from grouper.option_fields import MISSING, option, words_of


@dataclass(frozen=True)
class TaskOptions:
    """Options of evaluation tasks. limit: number of items per task."""

    names: tuple[str, ...] = option(
        MISSING,
        "Tasks of lm-evaluation-harness, e.g. hellaswag,piqa (needs kv-grouper[eval]).",
        panel="Tasks",
        name="tasks",
        metavar="NAMES",
        read=words_of,
    )
    folder: Path | None = option(
        None,
        "Folder of additional YAML tasks, which override built-in tasks of the same name.",
        panel="Tasks",
        name="task_path",
        metavar="FOLDER",
    )
    limit: int | None = None
    few_shot: int | None = option(
        None, "Number of few-shot examples (default: the task's own).", panel="Tasks", name="num_fewshot"
    )

    def __post_init__(self) -> None:
        if not self.names or not all(self.names):
            raise GrouperError("`names` is empty: give names like hellaswag,arc_easy,piqa")
        if (self.limit is not None and self.limit < 1) or (self.few_shot is not None and self.few_shot < 0):
            raise GrouperError(f"`limit={self.limit}`, `few_shot={self.few_shot}`: expected at least 1, and 0")
        if self.folder is not None and not self.folder.is_dir():
            raise GrouperError(f"`folder={self.folder}` is no folder: expected one with the tasks' YAML files")
