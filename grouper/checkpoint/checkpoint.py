"""A model on disk or on the Hub, read tensor by tensor."""

import copy
import hashlib
import json
import math
import os
from collections.abc import Iterable
from functools import cached_property, partial
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from grouper.checkpoint.dequantised import dense
from grouper.checkpoint.header import TensorInfo, read_header
from grouper.checkpoint.sources import LocalSource, Source, open_source
from grouper.checkpoint.validation import check_configuration
from grouper.errors import GrouperError
from grouper.parsing import read_object

if TYPE_CHECKING:  # configuration and headers are read without torch, so that `grouper inspect` answers at once
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
INDEX_LIMITS = 2**27, 10**6  # bytes and entries
ADAPTER = "adapter_config.json"
DEMO = Path(__file__).parent.parent / "data" / "demo"
EXPECTED = "expected the folder or Hub id of a Hugging Face model"
OTHER_FOLDERS = {  # files that identify a folder without config.json, and advice for each
    "adapter_config.json": "it is a LoRA adapter; load it on its base with peft, call merge_and_unload() and save that",
    ".gguf": "GGUF files are not read; give the Hugging Face original, or load the file with transformers "
    "(from_pretrained(folder, gguf_file=...)), dequantise and save it",
}
LARGEST = 1e12  # largest magnitude of a weight: sums of squares of larger ones overflow float32
SAMPLE = 1024  # bytes at each end of a tensor that enter the fingerprint


class Checkpoint:
    """Lazy reader of a checkpoint: only the configuration and headers are read until a tensor is requested.

    >>> checkpoint = Checkpoint.open("HuggingFaceTB/SmolLM2-135M")  # doctest: +SKIP
    >>> checkpoint.tensor("model.layers.0.self_attn.k_proj.weight").shape  # doctest: +SKIP
    torch.Size([192, 576])
    """

    def __init__(self, name: str, source: Source):
        self.name, self.source = name, source
        self._before: dict[str, str] = {}
        self.judged = False  # whether transformers was asked if it finds every tensor (grouper.model.loadable)
        self._config: dict = self._json("config.json")
        check_configuration(self._config, name)
        if ADAPTER in source.files():  # transformers would apply it to the weights if peft is installed
            raise GrouperError(
                f"{name} has an adapter beside its weights ({ADAPTER}): load it with transformers and peft, call "
                "merge_and_unload() and save the model; or remove the adapter's files"
            )

    @property
    def config(self) -> dict:
        """Contents of config.json as on disk. Each caller gets a copy, because transformers edits the one that it is
        given."""
        return copy.deepcopy(self._config)

    @classmethod
    def open(cls, model: str | os.PathLike, revision: str | None = None, write: bool = True) -> "Checkpoint":
        """Checkpoint of a model. model: a folder, a Hub id, or `demo`, the model that comes with Grouper. A quantised
        one is read from a bfloat16 copy. write: whether to write that copy if it is not there. Raises GrouperError if
        there is none."""
        if str(model) == "demo" and not Path("demo").is_dir():
            model = DEMO
            return cls("demo", LocalSource(DEMO))
        name = os.fspath(model)
        return cls(name, dense(open_source(model, revision), name, write))

    @property
    def place(self) -> str:
        """Argument that opens the checkpoint again from any working directory: a folder's full path, a Hub id, or
        `demo`."""
        return os.path.abspath(self.name) if Path(self.name).is_dir() else self.name

    @property
    def title(self) -> str:
        """Name to show or publish: a Hub id, `demo`, or the folder's name without its path."""
        return Path(self.name).resolve().name if Path(self.name).is_dir() else self.name

    def _json(self, file: str) -> dict:
        present = self.source.files()
        path = self.source.path(file) if file in present else None
        if path is None:
            why = next((why for sign, why in OTHER_FOLDERS.items() if any(f.endswith(sign) for f in present)), EXPECTED)
            raise GrouperError(f"{self.name} has no {file}: {why}")
        limits = INDEX_LIMITS if file == INDEX else ()
        return read_object(path, f"{file} of {self.name}", *limits)

    @cached_property
    def weight_files(self) -> list[str]:
        present = self.source.files()
        if SINGLE in present:  # transformers prefers it to an index
            return [SINGLE]
        if INDEX in present:
            weight_map = self._json(INDEX).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
                raise GrouperError(f"{INDEX} of {self.name} has no weight_map")
            files = sorted(set(weight_map.values()))
            for file in files:
                if PurePosixPath(file).name != file or "\\" in file:
                    raise GrouperError(
                        f"{INDEX} of {self.name} names {file!r}, a path outside the model's folder: refused"
                    )
                if file not in present:
                    raise GrouperError(
                        f"{INDEX} of {self.name} names {file}, which is missing: download the model again"
                    )
            return files
        return self._without_index(present)

    def _without_index(self, present: list[str]) -> list[str]:
        """Weight files of a model without an index: at most one, because transformers then reads only
        model.safetensors."""
        files = [f for f in present if f.endswith(".safetensors")]
        if len(files) == 1:
            raise GrouperError(f"{self.name} has {files[0]}: rename it to {SINGLE}, which transformers looks for")
        what = "no safetensors" if not files else f"{len(files)} safetensors files and no {INDEX}"
        again = "load it with transformers and save_pretrained() it (other formats are not read)"
        raise GrouperError(f"{self.name} has {what}: {again}")

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor's file, dtype, shape and byte range, read from the headers alone."""
        found: dict[str, TensorInfo] = {}
        for file in self.weight_files:
            found.update(read_header(file, partial(self.source.read, file), self.source.size(file)))
        return found

    @property
    def parameters(self) -> int:
        return sum(info.elements for info in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Total size in bytes of all tensors as stored."""
        return sum(info.nbytes for info in self.tensors.values())

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def before(self, layer: str) -> str:
        """Prefix of `layer` ("layers.0.") in the names of the decoder's tensors. Checkpoints use `model.`,
        `language_model.model.` or none; `model.` is the default if the layer is not found."""
        if layer not in self._before:
            self._before[layer] = decoder_prefix(self.tensors, layer, otherwise="model.")
        return self._before[layer]

    def tensor(self, name: str) -> "torch.Tensor":
        """Tensor as stored, on the CPU, in memory of its own. Files are read instead of mapped, because mapped pages
        count towards memory limits and load more slowly. Raises GrouperError if the tensor is missing or cannot be
        read."""
        import torch

        if name not in self.tensors:
            raise GrouperError(f"{self.name} has no tensor {name}: is the checkpoint complete?")
        info = self.tensors[name]
        dtype = info.torch_dtype
        path = self.source.path(info.file)
        if path is None:
            return torch.frombuffer(bytearray(self.source.read(info.file, info.start, info.stop)), dtype=dtype).view(
                info.shape
            )
        tensor = torch.empty(info.shape, dtype=dtype)
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(info.start)
                if info.nbytes:
                    read_into(file, tensor.view(-1).view(torch.uint8).numpy().data)
        except OSError as error:
            raise GrouperError(
                f"{info.file} of {self.name} is truncated or corrupt ({error}): download it again"
            ) from error
        return tensor

    def finite(self, name: str) -> "torch.Tensor":
        """Tensor in float32. Raises GrouperError if it holds NaN, infinity or values too large for a weight."""
        tensor = self.tensor(name).float()
        least, most = map(float, tensor.aminmax()) if tensor.numel() else (0.0, 0.0)
        largest = max(-least, most) if least == least else least  # NaN is kept
        if not math.isfinite(largest):
            raise GrouperError(f"{name} of {self.name} holds NaN or infinity: the weights are damaged")
        if largest > LARGEST:
            raise GrouperError(f"{name} of {self.name} has values of {largest:.0e}: the weights are damaged")
        return tensor

    def local(self) -> "Checkpoint":
        """Checkpoint with every file on the local disk (downloads a Hub model)."""
        return self if isinstance(self.source, LocalSource) else Checkpoint(self.name, self.source.download())

    @property
    def local_folder(self) -> Path | None:
        """Folder of the files if they are on the local disk, else None."""
        return self.source.folder if isinstance(self.source, LocalSource) else None

    @property
    def dequantised_from(self) -> str | None:
        """Method of quantisation of the original, if this is a bfloat16 copy of it."""
        return getattr(self.source, "dequantised_from", None)

    @property
    def folder(self) -> Path:
        """Folder of a local checkpoint's files."""
        if not isinstance(self.source, LocalSource):
            raise GrouperError(f"{self.name} is on the Hub: call local() first")
        return self.source.folder

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint that changes when the model does: the commit of a Hub model; otherwise a hash of the
        configuration, the headers and both ends of every tensor."""
        if self.source.commit:
            return self.source.commit
        digest = hashlib.sha256(json.dumps(self._config, sort_keys=True).encode())
        for name, info in sorted(self.tensors.items()):
            digest.update(f"{name} {info.dtype} {info.shape}".encode())
            digest.update(self.source.read(info.file, info.start, min(info.start + SAMPLE, info.stop)))
            digest.update(self.source.read(info.file, max(info.start, info.stop - SAMPLE), info.stop))
        return digest.hexdigest()

    @property
    def dtype(self) -> str:
        """Dtype that the configuration states, else the dtype of the largest tensor."""
        named = self.config.get("dtype") or self.config.get("torch_dtype")
        if named:
            return named
        largest = max(self.tensors.values(), key=lambda info: info.nbytes)
        return largest.dtype_name


def decoder_prefix(names: Iterable[str], layer: str, otherwise: str = "") -> str:
    """Prefix of `layer` ("layers.0.") in these names. Image and audio towers are ignored."""
    found = (f".{n}".partition(f".{layer}") for n in names)
    prefixes = {f"{head}."[1:] for head, middle, _ in found if middle}
    towers = ("vision", "visual", "audio", "vit", "vpm", "siglip")
    beside = [p for p in prefixes if not any(t in p for t in towers)]
    return min(beside or prefixes, key=len, default=otherwise)


def read_into(file: FileIO, room: memoryview) -> None:
    """Fill `room` from the file's current position. Raises OSError if the file ends first."""
    at = 0
    while at < len(room):
        came = file.readinto(room[at:])
        if not came:
            raise OSError(f"{file.name} ended while it was read")
        at += came
