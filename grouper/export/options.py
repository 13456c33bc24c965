"""What an export is asked for."""

from dataclasses import dataclass

from grouper.option_fields import option
from grouper.shares import parsed_share

MAX_PADDING = 0.10  # of the model's weights
ASKED = ("stock", "padded", "ragged", "any")  # classes of an export, as one asks for them
SHARD_BYTES = 2 * 1024**3
SELF_TEST_MEMORY = 4_000_000_000  # bytes


@dataclass(frozen=True)
class ExportOptions:
    """shard_bytes: of a weight file, at most. self_test_memory: bytes that the self-test may take for whole models;
    larger ones are compared layer by layer."""

    format: str = option(
        "hf",
        "hf (for transformers and vLLM) or gguf (llama.cpp).",
        panel="Output",
        words="grouper.export.formats.FORMATS",
    )
    dtype: str | None = option(
        None, "Of a GGUF: float32, float16, bfloat16; the model's own unless given.", panel="Output"
    )
    max_padding: float = option(
        MAX_PADDING,
        "Share that a padded export may add to the weights; beyond it, ragged.",
        panel="Layout",
        read=lambda typed: parsed_share(typed, "`max_padding`"),
        shown="{:.0%}".format,
    )
    kv_gauge: bool = option(
        True, "Scale keys and values, where that helps KV caches of 4 and 8 bits; no score changes.", panel="Output"
    )
    shard_bytes: int = SHARD_BYTES
    overwrite: bool = option(False, "Replace what is there.", panel="Output")
    self_test_memory: int = SELF_TEST_MEMORY
