"""Errors of libraries that need a cure of their own."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from grouper.errors import GrouperError, as_one_line, is_disk_full, is_memory_short

FULL = (
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EFBIG, "File too large"),
    OSError("1024 requested and 512 written"),  # numpy, and gguf with it
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:595] . unexpected pos: File too large"),
)
SHORT = (
    MemoryError(),
    torch.OutOfMemoryError("Tried to allocate 3.64 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
)


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_is_known_whoever_raised_it(error):
    assert is_disk_full(error) and not is_memory_short(error)
    with pytest.raises(type(error)), as_one_line("cannot save"):
        raise error
    with pytest.raises(GrouperError) as wrapped:
        raise GrouperError("the export failed") from error
    assert is_disk_full(wrapped.value)


@pytest.mark.parametrize("error", SHORT, ids=str)
def test_memory_that_is_short_is_known_by_torchs_words_too(error):
    assert is_memory_short(error) and not is_disk_full(error)
    with pytest.raises(type(error)), as_one_line("cannot load"):
        raise error


def test_other_errors_of_libraries_are_one_line():
    with pytest.raises(GrouperError, match=r"cannot load it \(KeyError: 'a'\)"), as_one_line("cannot load it"):
        raise KeyError("a")
    assert not is_disk_full(KeyError("a")) and not is_memory_short(OSError(errno.EACCES, "Permission denied"))
