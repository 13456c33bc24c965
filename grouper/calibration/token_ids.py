"""Token ids in a NumPy file in place of text, for models whose input is not text, as proteins or series of numbers."""

from array import array
from pathlib import Path

import numpy as np

from grouper.calibration.parts import spans_of
from grouper.calibration.source import TextSource
from grouper.errors import GrouperError, as_one_line

SUFFIX = ".npy"


def holds_ids(source: TextSource) -> bool:
    """Whether a source is a file of token ids."""
    return source.path is not None and source.path.suffix == SUFFIX


def ids_of(source: TextSource) -> array:
    """Ids of the part of a file that this source reads. Rows follow one another without a separator."""
    assert source.path is not None
    ids = read_ids(source.path)
    spans = spans_of(len(ids), source.part)
    return array("q", b"".join(ids[start:stop].tobytes() for start, stop in spans))


def read_ids(path: Path) -> np.ndarray:
    """Ids [n] of a .npy file, row after row. Raises GrouperError if it holds anything but whole numbers from 0 on."""
    if not path.is_file():
        raise GrouperError(f"{path} is not a file: give a .npy file of token ids, or a text")
    with as_one_line(f"{path} cannot be read as a NumPy file"):
        ids = np.load(path, allow_pickle=False)
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu" or ids.ndim not in (1, 2):
        kind = f"{ids.dtype} of {ids.ndim} dimensions" if isinstance(ids, np.ndarray) else "several arrays"
        raise GrouperError(f"{path} holds {kind}: expected token ids, of one text or one in each row")
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= 2**62):
        raise GrouperError(
            f"{path} holds ids from {int(ids.min())} to {int(ids.max())}: expected ids of the vocabulary"
        )
    return ids.reshape(-1).astype(np.int64)
