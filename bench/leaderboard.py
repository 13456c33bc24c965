"""The leaderboard's table from the JSON of `grouper evaluate MODEL --json` (docs/leaderboard/*.json).

grouper evaluate half --text TEXT --json > docs/leaderboard/NAME.json
python bench/leaderboard.py            # prints the table, or says which file is not as it should be
python bench/leaderboard.py --write    # puts it into docs/leaderboard.md
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from grouper.errors import GrouperError
from grouper.names import in_markdown
from grouper.schema import damage_said, document, fitted, text_of
from search.evaluation.about import About

PAGE = Path(__file__).resolve().parent.parent / "docs" / "leaderboard.md"
ENTRIES = PAGE.with_suffix("")
BEGIN, END = "<!-- table: python bench/leaderboard.py --write -->\n", "<!-- end -->\n"
HEADS = (
    "model", "layout", "KV bytes per token", "merge", "tokens refined, trained", "text", "nats", "over", "KL",
    "agreement", "tasks", "versions", "entry",
)  # fmt: skip
Values = dict[str, float | None]


@dataclass(frozen=True)
class Entry:
    """A file of the leaderboard, as `grouper evaluate MODEL --json` prints it."""

    model: str
    values: Values
    about: About
    original: Values = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.about.texts:
            if self.values.get(_column("nll", name)) is None:
                raise GrouperError(
                    f"values.{_column('nll', name)} is missing, and it was measured on {name or 'a text'}"
                )
        if not self.about.commands:
            raise GrouperError("about.commands is empty: expected those that made and measured the model")


def entries(folder: Path = ENTRIES) -> dict[str, Entry]:
    """Entries by file name. Raises GrouperError that names the file that is not one."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        with damage_said(path, "write it by `grouper evaluate MODEL --json`"):
            found[path.name] = fitted(document(text_of(path)), Entry)
    return found


def table(found: dict[str, Entry]) -> str:
    """Markdown: a row for each entry and text, by model and by bytes."""
    order = sorted(found.items(), key=lambda pair: (pair[1].about.base_model, -pair[1].about.kv_bytes_per_token[1]))
    rows = [row for file, entry in order for row in rows_of(file, entry)]
    lines = [f"| {' | '.join(cells)} |" for cells in (HEADS, ["---"] * len(HEADS), *rows)]
    return "\n".join(lines) + "\n"


def rows_of(file: str, entry: Entry) -> Iterator[list[str]]:
    about = entry.about
    before, after = about.kv_bytes_per_token
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
    tasks = ", ".join(tasks_of(entry))
    for name, text in about.texts.items() or {"": None}.items():
        nll, se, kl, agreement = (entry.values.get(_column(c, name)) for c in ("nll", "nll_se", "kl", "agreement"))
        original = entry.original.get(_column("nll", name))
        over = "" if original is None or nll is None else f"{nll - original:+.4f}" + (f" ±{se:.4f}" if se else "")
        of_text = "" if text is None else f"{in_markdown(text.file)} ({text.windows[0]} x {text.windows[1]})"
        yield [
            in_markdown(about.base_model), f"{about.export_class}, {heads(about.kv_heads)}", f"{after:,} of {before:,}",
            about.merge or "", f"{about.refined_tokens:,}, {about.trained_tokens:,}", of_text,
            "" if nll is None else f"{nll:.4f}", over, "" if kl is None else f"{kl:.4f}",
            "" if agreement is None else f"{agreement:.1%}", tasks, versions, f"[{file}](leaderboard/{file})",
        ]  # fmt: skip


def tasks_of(entry: Entry) -> Iterator[str]:
    """Scores of tasks, with the original's."""
    for name, value in entry.values.items():
        if "," in name and "stderr" not in name and value is not None:
            original = entry.original.get(name)
            yield f"{name} {value:.3f}" + ("" if original is None else f" of {original:.3f}")


def heads(counts: tuple[str, ...]) -> str:
    """KV heads of all layers, in short.

    >>> heads(("4", "4")), heads(("4", "2", "4"))
    ('4 heads', '2 to 4 heads')
    """
    known = sorted(set(counts), key=lambda count: float(count.split("/")[0]))
    return f"{known[0] if len(known) == 1 else f'{known[0]} to {known[-1]}'} heads"


def _column(name: str, text: str) -> str:
    return f"{name}:{text}" if text else name


def page_with(text: str, drawn: str) -> str:
    """The page with this table between its marks."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{drawn}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/leaderboard.md")
    args = parser.parse_args()
    try:
        drawn = table(entries())
    except GrouperError as error:
        raise SystemExit(f"error: {error}") from error
    if args.write:
        PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), drawn), encoding="utf-8")
    else:
        print(drawn, end="")


if __name__ == "__main__":
    main()
