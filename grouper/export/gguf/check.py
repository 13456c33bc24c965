"""Self-test of a GGUF export: read the file back in llama.cpp's layout, and compare every query head's weights with the
merged ones."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from grouper.attention import Merged
from grouper.errors import GrouperError
from grouper.export.format import SelfTest
from grouper.layout import HeadLayout


def check_file(path: Path, layout: HeadLayout, merged: Merged, dtype: str) -> SelfTest:
    """Largest difference from the merged weights rounded to `dtype`, which must be 0. Raises GrouperError."""
    from gguf import GGUFReader, quants

    tensors = {t.name: t for t in GGUFReader(path).tensors}
    largest = 0.0

    def read(name: str) -> Tensor:
        t = tensors[name]
        return torch.from_numpy(np.array(quants.dequantize(t.data, t.tensor_type))).reshape(
            *map(int, reversed(t.shape))
        )

    for index, layer in enumerate(layout.layers):
        done, d = merged(index).attention, layout.head_dim
        q, k, v, o = (read(f"blk.{index}.attn_{n}.weight") for n in ("q", "k", "v", "output"))
        width, turned = (
            max(layer.k.sizes),
            [2 * (i % (d // 2)) + i // (d // 2) for i in range(d)],
        )  # row i of a head is row turned[i] in the file
        used = torch.zeros(len(q) // d, dtype=torch.bool)
        for group, readers in enumerate(layer.k.readers):
            pairs = [(k[group * d :][turned], done.k[group]), (v[group * d :][:d], done.v[group])]
            for place, head in enumerate(readers):
                slot = group * width + place
                used[slot] = True
                pairs += [(q[slot * d :][turned], done.q[head]), (o[:, slot * d :][:, :d], done.o[:, head])]
            largest = max(largest, *((a - b.to(getattr(torch, dtype)).float()).abs().max().item() for a, b in pairs))
        empty = torch.cat([q.unflatten(0, (-1, d))[~used].flatten(), o.unflatten(1, (-1, d))[:, ~used].flatten()])
        largest = max(largest, empty.abs().max().item() if len(empty) else 0.0)
    if largest:
        raise GrouperError(
            f"the GGUF that was written differs from the merge by {largest:.2g}; nothing was kept: please report this"
        )
    return SelfTest(largest, 0, 0, "the file read back is the merge, head by head")
