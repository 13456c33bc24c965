"""Tables of bench/bytes.py from its measurements."""

from typing import Any

Found = dict[str, Any]


def tables(found: Found) -> str:
    """Markdown: a line on the text, then for each text a table of heads against KV cache types."""
    tokens = ", ".join(f"{count:,} of {found['texts'][name]} ({name})" for name, count in found["tokens"].items())
    fewer = any(not row["heads"].startswith("all") for row in found["rows"])
    refined = (", refined" if found["refined"] else ", not refined") if fewer else ""
    lines = [f"{found['model']} on {found['device']}{refined}; windows of {found['window']:,} tokens: {tokens}."]
    for text, nll in found["original"].items():
        lines += ["", *of_text(found["rows"], text, nll)]
    return "\n".join(lines)


def of_text(rows: list[Found], text: str, nll: float) -> list[str]:
    """Cells with nats over the original ± paired standard error, and bytes relative to the original's cache."""
    kinds = list(dict.fromkeys(row["kv_cache"] for row in rows))
    bits = {row["kv_cache"]: row["bits"] for row in rows}
    shown = " | ".join(f"{kind} ({bits[kind]:g} bits)" for kind in kinds)
    lines = [f"| {text}: nats over {nll:.4f} | {shown} |", "|" + " --- |" * (1 + len(kinds))]
    for name in dict.fromkeys(row["heads"] for row in rows):
        of = {row["kv_cache"]: row for row in rows if row["heads"] == name}
        cells = [cell(of[kind], text) if kind in of else "" for kind in kinds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def cell(row: Found, text: str) -> str:
    """One cell: the value, and the bytes of the cache.

    >>> cell({"bytes": 0.28125, "texts": {"a": {"over": 0.0204, "se": 0.0012}}}, "a")
    '+0.0204 ±0.0012 (28.1%)'
    """
    value = row["texts"][text]
    return f"{value['over']:+.4f} ±{value['se']:.4f} ({row['bytes']:.1%})"
