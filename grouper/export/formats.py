"""The registry of formats. A new format is a file with a subclass of Format, and an entry below."""

from typing import TYPE_CHECKING

from grouper.registry import Named, Registry

if TYPE_CHECKING:
    from grouper.export.format import Format

FORMATS: "Registry[Format]" = Registry(
    "format",
    Named("hf", "grouper.export.hf.write.HuggingFace"),
    Named("gguf", "grouper.export.gguf.write.GGUF"),
)
