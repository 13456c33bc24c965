"""Quantised checkpoints, written once as bfloat16 into a folder of this machine, which is then read like any other.

FP8, MXFP4, GPTQ and AWQ are converted tensor by tensor. bitsandbytes and compressed-tensors are loaded as a whole by
transformers, which needs their package, and dequantised there.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grouper.checkpoint.header import TensorInfo, read_header
from grouper.checkpoint.quantised_formats import FORMATS, Headers, Named
from grouper.checkpoint.sources import LocalSource, Source, is_own_file
from grouper.checkpoint.validation import check_configuration
from grouper.errors import GrouperError, as_one_line
from grouper.model.auto import auto_class
from grouper.model.loading import load
from grouper.outputs import new_folder, write_json
from grouper.own_folder import home
from grouper.parsing import read_object

if TYPE_CHECKING:
    import torch

LOG = logging.getLogger("grouper")
CONFIG, WEIGHTS = "config.json", ".safetensors"
INDEX_LIMITS = 2**27, 10**6  # bytes and entries
SHARD = 4 * 10**9  # bytes of a file that is written
COPIED = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".spm", ".md")
PACKAGES = {  # of methods that transformers loads as a whole
    "bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed_tensors",
}  # fmt: skip


def dense(source: Source, name: str, write: bool = True) -> Source:
    """The source, or for a quantised model that of its bfloat16 copy. name: of the model. write: whether to download
    the model and write the copy if it is not there. Raises GrouperError for a method that cannot be read."""
    if CONFIG not in source.files():
        return source
    config = read_object(_path(source), f"{CONFIG} of {name}")
    scheme = config.get("quantization_config")
    if scheme is None:
        return source
    check_configuration(config, name)  # before any library sees it
    method = str(scheme.get("quant_method") or "") if isinstance(scheme, dict) else ""
    check_readable(method, name)
    local = source.download() if write or isinstance(source, LocalSource) else None
    folder = None if local is None else home() / "dequantised" / f"{method}-{_key(local)}"
    if local is None or folder is None or not (write or (folder / CONFIG).is_file()):
        raise GrouperError(
            f"{name} is quantised ({method}): a search writes a bfloat16 copy of it first and reads that; inspect the "
            "original"
        )
    _written(local, config, method, folder, name)
    return LocalSource(folder, local.commit, dequantised_from=method)


def check_readable(method: str, name: str) -> None:
    """Raise GrouperError if this method of quantisation cannot be read here."""
    save = "load it with transformers, call model.dequantize() and save it as bfloat16"
    if method in FORMATS:
        return
    if method not in PACKAGES:
        what = f"by {method}" if method else "in a way that config.json does not name"
        raise GrouperError(f"{name} is quantised {what}: use the original, or {save}")
    if find_spec(PACKAGES[method]) is None:
        raise GrouperError(
            f"{name} is quantised by {method}: use the original; or pip install {PACKAGES[method]}, and give it again; "
            f"or {save}"
        )


def _path(source: Source) -> Path:
    path = source.path(CONFIG)
    if path is None:
        raise GrouperError(f"{CONFIG} could not be read")
    return path


def _key(local: LocalSource) -> str:
    """Name of the copy: the commit, or a hash of the configuration and of the weight files' sizes and times."""
    if local.commit:
        return local.commit[:16]
    digest = hashlib.sha256((local.folder / CONFIG).read_bytes())
    for file in (file for file in local.files() if file.endswith(WEIGHTS)):
        stat = local.path(file).stat()
        digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _written(local: LocalSource, config: dict, method: str, folder: Path, name: str) -> None:
    """Write the copy unless it is there. Other processes that want it wait."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / CONFIG).is_file():
            return
        tensors = {n: info for file in _weight_files(local, name) for n, info in _headers(local, file)}
        size = (2 if method == "fp8" else 4) * sum(info.nbytes for info in tensors.values())
        if size > shutil.disk_usage(folder.parent).free:
            raise GrouperError(
                f"{name} takes up to {size / 1e9:.1f} GB in bfloat16, more than is free in {folder.parent}: name "
                "another folder by GROUPER_HOME"
            )
        LOG.warning(f"{name} is quantised ({method}): read as bfloat16 from {folder}, which may be deleted when done")
        with new_folder(folder, CONFIG) as beside:
            if method in PACKAGES:
                _by_transformers(local.folder, config, method, beside, name)
            else:
                _by_tensor(local, tensors, config, method, beside, name)
            _copy_others(local, config, beside)


def _weight_files(local: LocalSource, name: str) -> list[str]:
    """Files that transformers reads: one, or those of the index. Others may hold the weights under other names."""
    files, index = local.files(), f"model{WEIGHTS}.index.json"
    if f"model{WEIGHTS}" in files or index not in files:
        return [file for file in files if file == f"model{WEIGHTS}"]
    named = read_object(local.path(index), f"{index} of {name}", *INDEX_LIMITS).get("weight_map")
    wanted: set[str] = set(map(str, named.values())) if isinstance(named, dict) else {"no file"}
    if missing := wanted - set(files):
        raise GrouperError(f"{index} of {name} names {missing.pop()}, which is missing: download the model again")
    return sorted(wanted)


def _headers(local: LocalSource, file: str) -> Iterator[tuple[str, TensorInfo]]:
    yield from read_header(file, partial(local.read, file), local.size(file)).items()


def _by_tensor(local: LocalSource, tensors: Headers, config: dict, method: str, out: Path, name: str) -> None:
    from safetensors import safe_open

    with as_one_line(f"{name} cannot be dequantised"), ExitStack() as stack:
        opened = {file: stack.enter_context(safe_open(local.path(file), "pt")) for file in _files(tensors)}
        get = lambda tensor: opened[tensors[tensor].file].get_tensor(tensor)  # noqa: E731
        _write_weights(out, FORMATS[method](tensors, get, config))


def _files(tensors: Headers) -> set[str]:
    return {info.file for info in tensors.values()}


def _write_weights(folder: Path, named: Named) -> None:
    """Write tensors as shards with an index; those of one shard are in memory."""
    from safetensors.torch import save_file

    shard: dict[str, torch.Tensor] = {}
    files: dict[str, str] = {}
    count = held = total = 0

    def close() -> None:
        nonlocal shard, count, held
        file = f"model-{count + 1:05}{WEIGHTS}"
        save_file(shard, folder / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(shard, file))
        shard, count, held = {}, count + 1, 0

    for name, loaded in named:
        try:
            tensor = loaded().contiguous()
        except GrouperError as error:
            raise GrouperError(f"{name} cannot be dequantised: {error}") from error
        if held and held + tensor.nbytes > SHARD:
            close()
        shard[name] = tensor
        held, total = held + tensor.nbytes, total + tensor.nbytes
    close()
    if count == 1:
        (folder / f"model-00001{WEIGHTS}").rename(folder / f"model{WEIGHTS}")
    else:
        index = {"metadata": {"total_size": total}, "weight_map": files}
        write_json(folder / f"model{WEIGHTS}.index.json", index)


def _by_transformers(folder: Path, config: dict, method: str, out: Path, name: str) -> None:
    """Have transformers load and dequantise the model as a whole."""
    import torch
    import transformers

    options: dict[str, Any] = {"dtype": torch.bfloat16}
    if method == "compressed-tensors":
        kind: Any = transformers.CompressedTensorsConfig
        newer = "dequantize" in signature(kind).parameters  # not in older releases of transformers
        options["quantization_config"] = kind(**({"dequantize": True} if newer else {"run_compressed": False}))
    with as_one_line(f"transformers cannot dequantise {name} ({method})"):
        model = load(auto_class(config), folder, **options)
        if method != "compressed-tensors":  # that is dequantised on loading
            model = model.dequantize(torch.bfloat16)
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.to(torch.bfloat16).save_pretrained(out)


def _copy_others(local: LocalSource, config: dict, out: Path) -> None:
    """Copy tokenizer and card, and write the configuration without its quantisation, last."""
    for path in sorted(local.folder.iterdir()):
        index = path.name.endswith(f"{WEIGHTS}.index.json")
        if path.suffix in COPIED and not index and path.name != CONFIG and is_own_file(path, local.folder):
            shutil.copyfile(path, out / path.name)
    kept = {key: value for key, value in config.items() if key not in ("quantization_config", "torch_dtype")}
    (out / CONFIG).write_text(json.dumps({**kept, "dtype": "bfloat16"}, indent=2) + "\n", encoding="utf-8")
