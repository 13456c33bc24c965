"""Options of an export."""

from dataclasses import dataclass

from grouper.errors import GrouperError
from grouper.export.hf.slots import check_gpus
from grouper.option_fields import option
from grouper.shares import parsed_share

MAX_PADDING = 0.10  # of the model's weights
ASKED = ("stock", "padded", "ragged", "any")  # export classes that a user can request
SHARD_BYTES = 2 * 1024**3
SELF_TEST_MEMORY = 4_000_000_000  # bytes


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export. shard_bytes: largest weight file, in bytes. self_test_memory: memory budget of the
    self-test for whole models, in bytes; larger models are compared layer by layer."""

    format: str = option(
        "hf",
        "Output format: hf (transformers, vLLM) or gguf (llama.cpp).",
        panel="Output",
        words="grouper.export.formats.FORMATS",
    )
    dtype: str | None = option(
        None, "Data type of a GGUF file: float32, float16 or bfloat16 (default: the model's).", panel="Output"
    )
    max_padding: float = option(
        MAX_PADDING,
        "Write padded only if that adds at most this share to the weights; else ragged.",
        panel="Layout",
        read=lambda typed: parsed_share(typed, "`max_padding`"),
        shown="{:.0%}".format,
    )
    tp: int = option(
        1,
        "Pad with zero heads where engines could not split the model over this many GPUs (tensor parallelism).",
        panel="Layout",
        metavar="GPUS",
    )
    kv_gauge: bool = option(
        True,
        "Rescale keys and values so that 4-bit and 8-bit KV caches round them less; nothing changes without one.",
        panel="Output",
    )
    shard_bytes: int = SHARD_BYTES
    overwrite: bool = option(False, "Replace an existing output.", panel="Output")
    self_test_memory: int = SELF_TEST_MEMORY

    def __post_init__(self) -> None:
        check_gpus(self.tp)
        if self.tp > 1 and self.format != "hf":
            raise GrouperError(f"`tp={self.tp}` is for `format=hf`: llama.cpp splits any number of heads; drop it")
