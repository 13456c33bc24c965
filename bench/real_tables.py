"""Tables of bench/real.py from its measurements."""

from collections.abc import Iterator
from statistics import mean
from typing import Any

Found = dict[str, Any]


def tables(found: Found) -> str:
    """Markdown: a line on the texts, then for each KV ratio the losses, and the losses by position."""
    texts = ", ".join(f"{name} {of['file']} (sha256 {of['sha256']})" for name, of in found["texts"].items())
    tokens = ", ".join(f"{count:,} of {name}" for name, count in found["tokens"].items())
    lines = [
        f"{found['model']} on {found['device']}. Texts: {texts}. Tokens: {tokens}, windows of {found['window']:,}."
    ]
    for kv_ratio in dict.fromkeys(row["kv_ratio"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["kv_ratio"] == kv_ratio]
        lines += ["", *losses(found, rows, kv_ratio)]
        if any(of["bands"] for of in found["original"].values()):
            lines += ["", *by_position(rows, kv_ratio)]
        if any("tasks" in row for row in rows):
            lines += ["", *of_tasks(found, rows)]
    return "\n".join(lines)


def by_name(rows: list[Found]) -> Iterator[tuple[str, list[Found]]]:
    """Rows by name; rows of one name differ in their seeds."""
    for name in dict.fromkeys(row["row"] for row in rows):
        yield name, [row for row in rows if row["row"] == name]


def losses(found: Found, rows: list[Found], kv_ratio: float) -> list[str]:
    """Losses as means over seeds; ± is the paired standard error over windows of one seed."""
    names = list(found["original"])
    heads = [f"{name}: nats over | {name}: KL | {name}: agreement | {name}: perplexity" for name in names]
    lines = [f"| KV {kv_ratio:.3g} | {' | '.join(heads)} | seconds | GB |", "|" + " --- |" * (3 + 4 * len(names))]
    blank = [f" | 0 | 100% | {found['original'][name]['perplexity']:.2f}" for name in names]
    lines.append(f"| original | {' | '.join(blank)} | | |")
    for name, seeds in by_name(rows):
        cells = []
        for text in names:
            of = [row["texts"][text] for row in seeds]
            over, spread = mean(o["over"] for o in of), [o["over"] for o in of]
            between = f" ({min(spread):+.3f} to {max(spread):+.3f})" if len(of) > 1 else ""
            cells.append(f"{over:+.4f} ±{mean(o['se'] for o in of):.4f}{between}")
            cells.append(f"{mean(o['kl'] for o in of):.4f}")
            cells.append(f"{mean(o['agreement'] for o in of):.1%}")
            cells.append(f"{mean(o['perplexity'] for o in of):.2f}")
        took = f"{mean(row['seconds'] for row in seeds):.0f} | {max(row['gigabytes'] for row in seeds):.1f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {took} |")
    return lines


def by_position(rows: list[Found], kv_ratio: float) -> list[str]:
    texts = list(rows[0]["texts"])
    bands = list(rows[0]["texts"][texts[0]]["bands"])
    lines = [f"| KV {kv_ratio:.3g}, nats over at | text | {' | '.join(bands)} |", "|" + " --- |" * (2 + len(bands))]
    for name, seeds in by_name(rows):
        for text in texts:
            of = [[row["texts"][text]["bands"][band] for row in seeds] for band in bands]
            cells = [f"{mean(o for o, _ in one):+.4f} ±{mean(e for _, e in one):.4f}" for one in of]
            lines.append(f"| {name} | {text} | {' | '.join(cells)} |")
    return lines


def of_tasks(found: Found, rows: list[Found]) -> list[str]:
    names = [name for name in found["original_tasks"] if "stderr" not in name]
    lines = [f"| | {' | '.join(names)} |", "|" + " --- |" * (1 + len(names))]
    originals = (f"{found['original_tasks'][name]:.3f}" for name in names)
    lines.append(f"| original | {' | '.join(originals)} |")
    for name, seeds in by_name(rows):
        cells = (f"{mean(row['tasks'][task] for row in seeds):.3f}" for task in names)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines
