"""Strings that somebody may call a model, a folder, a text or a method, to do harm where they are shown."""

HOSTILE = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a\x1b[2J\x1b]0;title\x07b", "\u202egnp.exe",
    "a\nb: c", "---", "key: [value", "*a: &b", "'\"", "# heading", "```sh", "`code`", "[link](javascript:alert(1))",
    "a|b|c", "$x^2$ $\\frac{1}{0}$", "_hidden", "{0} %s", "x\x9b31my", "[bold]red[/bold]", "\\", "~!@#", "null",
)  # fmt: skip
FOLDERS = tuple(name.replace("/", "-") for name in HOSTILE)  # which file systems take


def has_controls(text: str) -> bool:
    """Whether a terminal would do something else with this text than show it."""
    return any(
        (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c in "\u202a\u202b\u202d\u202e" for c in text
    )
