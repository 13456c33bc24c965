"""The registry of formats. A new format is a file with a subclass of Format, and an entry below."""

from grouper.export.format import Format
from grouper.export.gguf.write import GGUF
from grouper.export.hf.write import HuggingFace
from grouper.registry import Registry

FORMATS: Registry[Format] = Registry("format", HuggingFace(), GGUF())
