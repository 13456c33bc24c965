from pathlib import Path

import pytest

from grouper.names import fenced, in_markdown, printable, without_secrets
from grouper.outputs import write_text


@pytest.mark.parametrize(
    "typed, kept",
    [
        ("grouper export run --push me/it --token hf_AbCdEfGhIjKl", "grouper export run --push me/it --token hf_***"),
        ("https://user:pa55@example.org/text.txt", "https://***@example.org/text.txt"),
        ("models/hf_converted/llama_hf_checkpoints", "models/hf_converted/llama_hf_checkpoints"),
        ("me@example.org", "me@example.org"),
    ],
)
def test_secrets_are_struck_out(typed, kept, tmp_path: Path):
    assert without_secrets(typed) == printable(typed) == kept
    write_text(tmp_path / "run.json", typed)
    assert (tmp_path / "run.json").read_text() == kept


def test_a_terminal_gets_no_control_characters():
    assert printable("a\x1b[31mb\x07\u202ec") == r"a\x1b[31mb\x07\u202ec"
    assert printable("häuser 模型 😀\nnext") == "häuser 模型 😀\nnext"


def test_markdown_gets_no_markup():
    assert in_markdown("user/name-1.5_b") == "user/name-1.5_b"
    assert in_markdown("<img src=x>\n# now") == r"\<img src=x\>\n\# now"
    assert in_markdown("a|b`c`") == r"a\|b\`c\`"


def test_no_line_closes_a_fence():
    block = fenced("echo `date`\n```\nrm -rf /", "sh")
    assert block.startswith("````sh\n") and block.endswith("\n````") and block.count("````") == 2
