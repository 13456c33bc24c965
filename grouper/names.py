"""Text from outside, such as names of models, paths and commands, made safe to show or store."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

SECRETS = (
    # A token of the Hub: 34 letters and digits today. A folder may be called hf_converted.
    (re.compile(r"hf_(?:(?=[A-Za-z0-9]*[A-Z0-9])[A-Za-z0-9]{12,}|[A-Za-z0-9]{20,})"), "hf_***"),
    (re.compile(r"(?<=://)[^/\s@]+@"), "***@"),  # user:password@ in an address
)
PLAIN = re.compile(r"[\w ./:@+,-]*")


def without_secrets(text: str) -> str:
    """Text with Hub tokens, and passwords in addresses, masked.

    >>> without_secrets("search me/it --text https://me:pw@host/a.txt # hf_abcdefGHIJ12")
    'search me/it --text https://***@host/a.txt # hf_***'
    """
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text


def printable(text: str) -> str:
    r"""Text to show: control characters, and those that change the writing direction, are escaped; newlines stay.
    Secrets are masked.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    text = without_secrets(text)
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else repr(c)[1:-1] for c in text)


def shortened(text: str, most: int = 500) -> str:
    """Long text with its middle cut out.

    >>> shortened("x" * 1000, 20)
    'xxxxxxxxxx ... xxxxx'
    """
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most // 2 - 5) :]}"


def listed(words: Sequence[str]) -> str:
    """Words joined as in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([", ".join(words[:-1]), *words[-1:]] if words[1:] else words)


def in_markdown(text: str) -> str:
    r"""Text for a sentence or a heading in Markdown: one line, with all mark-up escaped.

    >>> in_markdown("a*b<i>\n# c")
    'a\\*b\\<i\\>\\n\\# c'
    """
    text = printable(text.replace("\n", "\\n").replace("\t", "\\t"))
    return text if PLAIN.fullmatch(text) else re.sub(r"([*_`\[\]()<>#|!~&])", r"\\\1", text)


def in_code(text: str) -> str:
    r"""Text for inline code in Markdown: one line, in as many backticks as needed.

    >>> in_code("qcqa-ac"), in_code("a`b\n")
    ('`qcqa-ac`', '``a`b\\n``')
    """
    text = printable(text.replace("\n", "\\n").replace("\t", "\\t"))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    room = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{room}{text}{room}{fence}"


def without_controls(text: str) -> str:
    """Text of several lines without control characters, except newlines and tabs.

    >>> without_controls("a\x1b[2Jb")
    'a[2Jb'
    """
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def fenced(text: str, language: str = "") -> str:
    """Code block in Markdown, in a fence longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def expected(name: str, known: Iterable[str]) -> str:
    """Advice for a message about an unknown name: the nearest known name, and all known names.

    >>> expected("spectrl", ["mean", "spectral"])
    'did you mean spectral? expected one of mean, spectral'
    >>> expected("luck", ["mean", "spectral"])
    'expected one of mean, spectral'
    """
    known = list(known)
    near = get_close_matches(str(name), known, 1)
    return (f"did you mean {near[0]}? " if near else "") + f"expected one of {', '.join(known)}"
