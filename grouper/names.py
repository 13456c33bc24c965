"""Names are text: what models, paths and commands are called, made harmless for where it is shown or kept."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

SECRETS = (
    # A token of the Hub: 34 letters and digits today. A folder may well be called hf_converted.
    (re.compile(r"hf_(?:(?=[A-Za-z0-9]*[A-Z0-9])[A-Za-z0-9]{12,}|[A-Za-z0-9]{20,})"), "hf_***"),
    (re.compile(r"(?<=://)[^/\s@]+@"), "***@"),  # user:password@ in an address
)
PLAIN = re.compile(r"[\w ./:@+,-]*")


def without_secrets(text: str) -> str:
    """Tokens of the Hub, and passwords in addresses, struck out.

    >>> without_secrets("search me/it --text https://me:pw@host/a.txt # hf_abcdefGHIJ12")
    'search me/it --text https://***@host/a.txt # hf_***'
    """
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text


def printable(text: str) -> str:
    r"""For people: control characters, and those that turn the direction of writing, as escapes; newlines stay. Secrets
    are struck out.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    text = without_secrets(text)
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else repr(c)[1:-1] for c in text)


def shortened(text: str, most: int = 500) -> str:
    """A long text without its middle.

    >>> shortened("x" * 1000, 20)
    'xxxxxxxxxx ... xxxxx'
    """
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most // 2 - 5) :]}"


def listed(words: Sequence[str]) -> str:
    """Words in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([", ".join(words[:-1]), *words[-1:]] if words[1:] else words)


def in_markdown(text: str) -> str:
    r"""For a sentence or a heading in Markdown: one line without mark-up of any kind.

    >>> in_markdown("a*b<i>\n# c")
    'a\\*b\\<i\\>\\n\\# c'
    """
    text = printable(text.replace("\n", "\\n").replace("\t", "\\t"))
    return text if PLAIN.fullmatch(text) else re.sub(r"([*_`\[\]()<>#|!~&])", r"\\\1", text)


def in_code(text: str) -> str:
    r"""For code within a sentence in Markdown: one line, in as many backticks as it takes.

    >>> in_code("qcqa-ac"), in_code("a`b\n")
    ('`qcqa-ac`', '``a`b\\n``')
    """
    text = printable(text.replace("\n", "\\n").replace("\t", "\\t"))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    room = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{fence}{room}{text}{room}{fence}"


def without_controls(text: str) -> str:
    """A text of several lines without control characters but newlines and tabs.

    >>> without_controls("a\x1b[2Jb")
    'a[2Jb'
    """
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def fenced(text: str, language: str = "") -> str:
    """A block of code in Markdown, in a fence that no line of it closes."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def expected(name: str, known: Iterable[str]) -> str:
    """For a message about a name that nobody knows: the nearest one, and all.

    >>> expected("spectrl", ["mean", "spectral"])
    'did you mean spectral? expected one of mean, spectral'
    >>> expected("luck", ["mean", "spectral"])
    'expected one of mean, spectral'
    """
    known = list(known)
    near = get_close_matches(str(name), known, 1)
    return (f"did you mean {near[0]}? " if near else "") + f"expected one of {', '.join(known)}"
