"""What an export is asked for."""

from dataclasses import dataclass

MAX_PADDING = 0.10  # of the model's weights
SHARD_BYTES = 2 * 1024**3
SELF_TEST_MEMORY = 4_000_000_000  # bytes


@dataclass(frozen=True)
class ExportOptions:
    """format: a name in grouper.export.formats.FORMATS. dtype: of a GGUF, float32, float16 or bfloat16; the model's own
    unless given. max_padding: the share that a `padded` export may add to the weights; what exceeds it goes out as
    `ragged`. shard_bytes: of a weight file, at most. overwrite: replace an earlier export. self_test_memory: bytes that
    the self-test may take for whole models; larger ones are compared layer by layer.
    """

    format: str = "hf"
    dtype: str | None = None
    max_padding: float = MAX_PADDING
    shard_bytes: int = SHARD_BYTES
    overwrite: bool = False
    self_test_memory: int = SELF_TEST_MEMORY
