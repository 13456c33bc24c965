"""Sources of a checkpoint's bytes: a local folder, or the Hub by byte ranges."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from grouper.errors import GrouperError

T = TypeVar("T")
TRIES, WAIT = 4, 1.0  # attempts, and seconds before the second one
BUSY = (408, 429, 500, 502, 503, 504)
BROKEN = ("RemoteProtocolError", "ReadError", "WriteError", "ReadTimeout", "ConnectTimeout", "IncompleteRead")
LARGEST = 2**28  # bytes of a file that libraries read at once
IS_GGUF = (
    '{0} is a GGUF file: give the Hugging Face original, or convert it: pip install gguf; then python -c "from '
    "transformers import AutoModelForCausalLM as M, AutoTokenizer as T; [c.from_pretrained('{2}', gguf_file='{1}')"
    ".save_pretrained('converted') for c in (M, T)]\"; then give converted as MODEL"
)
READ = (".json", ".safetensors", ".model", ".txt", ".jinja", ".py", ".tiktoken", ".spm")  # files libraries may read
WHOLE = ("*.json", "*.model", "*.jinja", "*.tiktoken", "*.spm", "vocab.txt", "merges.txt")  # files read as a whole
TEMPLATES = "additional_chat_templates"  # subfolder of a model that transformers reads, too


class Source(Protocol):
    """Files by name, readable in part. commit: commit of the Hub repository that they come from, or None."""

    @property
    def commit(self) -> str | None: ...

    def files(self) -> list[str]: ...

    def size(self, file: str) -> int: ...

    def read(self, file: str, start: int, stop: int) -> bytes: ...

    def path(self, file: str) -> Path | None:
        """Path of the file if it is on the local disk, else None."""

    def download(self) -> "LocalSource":
        """Source with all files that a model needs on the local disk."""


class LocalSource:
    """Local folder. Raises GrouperError if a file that the model is read from is a link out of the folder, or not a
    regular file. dequantised_from: method of quantisation of the model that the folder is a bfloat16 copy of."""

    def __init__(self, folder: Path, commit: str | None = None, dequantised_from: str | None = None):
        self.folder, self.commit, self.dequantised_from = folder, commit, dequantised_from
        for path in sorted([*folder.iterdir(), *(folder / TEMPLATES).glob("*")]):
            if path.suffix in READ and not path.is_dir() and not is_own_file(path, folder):
                raise GrouperError(f"{path} is a link out of the model's folder, or no file: put a copy in its place")
            if any(map(path.match, WHOLE)) and path.is_file() and path.stat().st_size > LARGEST:
                raise GrouperError(f"{path} has more than {LARGEST >> 20} MiB: is it what its name says?")

    def files(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir() if is_own_file(p, self.folder))

    def size(self, file: str) -> int:
        return (self.folder / file).stat().st_size

    def read(self, file: str, start: int, stop: int) -> bytes:
        with open(self.folder / file, "rb") as stream:
            stream.seek(start)
            return stream.read(stop - start)

    def path(self, file: str) -> Path:
        return self.folder / file

    def download(self) -> "LocalSource":
        return self


def is_own_file(path: Path, folder: Path) -> bool:
    """Whether this is a regular file in the folder, or in the Hub's cache if the folder is a snapshot there. Links that
    leave the folder, devices and pipes are neither read nor copied."""
    try:
        real, home = path.resolve(strict=True), folder.resolve()
    except (OSError, RuntimeError):  # missing, or a link to itself
        return False
    in_cache = home.parent.name == "snapshots" and real.parent == home.parent.parent / "blobs"
    return real.is_file() and (home in real.parents or in_cache)


class HubSource:
    """Model on the Hub. Honours HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE, as huggingface_hub does."""

    def __init__(self, repo_id: str, revision: str | None = None):
        self.repo_id, self.asked_revision = repo_id, revision
        self.info  # noqa: B018  one request: fails here, not in the middle

    @cached_property
    def info(self) -> Any:
        from huggingface_hub import HfApi

        with hub_errors(self.repo_id, self.asked_revision):
            ask = partial(HfApi().model_info, self.repo_id, revision=self.asked_revision, files_metadata=True)
            return patiently(ask)

    @property
    def commit(self) -> str:
        """Commit that all reads request, so that they see a single version."""
        return self.info.sha

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {s.rfilename: s.size or (s.lfs.size if s.lfs else 0) for s in self.info.siblings}

    def files(self) -> list[str]:
        return sorted(name for name in self.sizes if "/" not in name)

    def size(self, file: str) -> int:
        return self.sizes[file]

    def path(self, file: str) -> Path | None:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        cached = try_to_load_from_cache(self.repo_id, file, revision=self.commit)
        if isinstance(cached, str):
            return Path(cached)
        if file.endswith(".safetensors") or file not in self.sizes:
            return None
        with hub_errors(self.repo_id, self.commit):
            return Path(hf_hub_download(self.repo_id, file, revision=self.commit))

    def read(self, file: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) by an HTTP range request, or from the cache if the file is there."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        cached = self.path(file)
        if cached is not None:
            return LocalSource(cached.parent).read(cached.name, start, stop)
        url = hf_hub_url(self.repo_id, file, revision=self.commit)
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}

        def ask() -> bytes:
            response = get_session().get(url, headers=headers, follow_redirects=True)
            hf_raise_for_status(response)
            came = response.content
            if response.status_code != 206 or len(came) != stop - start:
                raise WrongRange(f"the server of {self.repo_id} sent {len(came)} bytes of {file}, not {stop - start}")
            return came

        with hub_errors(self.repo_id, self.commit):
            return patiently(ask)

    def download(self) -> LocalSource:
        from huggingface_hub import snapshot_download

        kept = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.md", "LICENSE*"]
        with hub_errors(self.repo_id, self.commit):
            # requested by the same name, so that the cache finds it offline
            fetch = partial(snapshot_download, self.repo_id, revision=self.asked_revision, allow_patterns=kept)
            snapshot = Path(patiently(fetch))  # each attempt resumes the one before
        if snapshot.name != self.commit:
            raise GrouperError(
                f"{self.repo_id} changed on the Hub while it was read: run again, or fix the version with `revision`"
            )
        return LocalSource(snapshot, self.commit)


class WrongRange(GrouperError):
    """Server sent other bytes than requested; the next answer may be right."""


def patiently(call: Callable[[], T]) -> T:
    """Result of `call`, retried if a server is busy or a connection breaks: four attempts, with waits of 1, 2 and 4
    seconds. An unreachable server is not retried."""
    for attempt in range(TRIES):
        try:
            return call()
        except Exception as error:
            response = getattr(error, "response", None)
            busy = response is not None and response.status_code in BUSY
            broke = type(error).__name__ in BROKEN or isinstance(error, WrongRange)
            if attempt + 1 == TRIES or not (busy or broke):
                raise
            time.sleep(WAIT * 2**attempt)
    raise AssertionError("the last try returns or raises")


@contextmanager
def hub_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Errors of the Hub, each turned into a GrouperError of one line."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )  # fmt: skip

    try:
        yield
    except GatedRepoError as error:
        raise GrouperError(
            f"{repo_id} is gated: accept its terms on the Hub and log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise GrouperError(f"{repo_id} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise GrouperError(
            f"no folder {repo_id} here, and no model of that name on the Hub that you may read"
        ) from error
    except LocalTokenNotFoundError as error:
        raise GrouperError(f"{repo_id} needs a login: set HF_TOKEN, or `hf auth login`") from error
    except Exception as error:  # HTTP libraries raise connection errors of their own, which are not OSErrors
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("http", "requests")):
            raise
        status = (
            error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
        )
        if status in (401, 403):
            raise GrouperError(
                f"the Hub did not let you at {repo_id} (HTTP {status}): log in with `hf auth login`, or set HF_TOKEN"
            ) from error
        what = f"HTTP {status}" if status else type(error).__name__
        raise GrouperError(f"cannot reach the Hub for {repo_id} ({what}): is a folder meant, or try again?") from error


def open_source(model: str | os.PathLike, revision: str | None = None) -> Source:
    """Local folder if there is one of that name, else the Hub (only its cache if HF_HUB_OFFLINE is set)."""
    folder = Path(os.path.expanduser(model))
    if folder.is_dir():
        return LocalSource(folder)
    name = os.fspath(model)
    if name.lower().endswith(".gguf"):
        raise GrouperError(IS_GGUF.format(name, folder.name, folder.parent))
    if folder.exists():
        raise GrouperError(f"{name} is a file: give the model's folder, or its id on the Hub")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise GrouperError(f"no folder {name}")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        if constants.HF_HUB_OFFLINE:
            snapshot = Path(snapshot_download(name, revision=revision, local_files_only=True))
            return LocalSource(snapshot, snapshot.name)
        return HubSource(name, revision)
    except HFValidationError as error:
        raise GrouperError(f"no folder {name}, and that is no model id (expected USER/NAME)") from error
    except LocalEntryNotFoundError as error:
        raise GrouperError(f"no folder {name}, and it is not in the Hub's cache (HF_HUB_OFFLINE is set)") from error
