"""Removal of references to code from a model's files. Code is not copied into an export, so references to it are
dropped too.

A loader that may run our modelling file would otherwise look for the referenced code, and fetch it from elsewhere.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from grouper.errors import GrouperError
from grouper.outputs import write_text
from grouper.parsing import check_extent

MOST_VALUES = 10**7
NAMES_CODE = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code")


def without_code(data: Any) -> Any:
    """Copy of JSON data without references to code, at any depth."""
    if isinstance(data, dict):
        return {key: without_code(value) for key, value in data.items() if key not in NAMES_CODE}
    return [without_code(value) for value in data] if isinstance(data, list) else data


def copy_without_code(source: str | Path, target: str | Path) -> None:
    """Copy a file. References to code are dropped from a configuration. modules.json of sentence-transformers is
    skipped if a module is not that library's own."""
    path = Path(source)
    data = _configuration(path)
    if path.name == "modules.json" and not _all_theirs(data):
        return
    clean = without_code(data)
    if clean == data:
        shutil.copyfile(source, target)
    else:
        write_text(Path(target), json.dumps(clean, indent=2) + "\n")  # keys keep their order


def _configuration(path: Path) -> Any:
    """Data of a JSON configuration; None for any other file, such as a vocabulary, and for invalid JSON. Raises
    GrouperError for data nested so deeply that other readers may accept what this one cannot."""
    if path.suffix != ".json" or not ("config" in path.name or path.name == "modules.json"):
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    except RecursionError as error:
        raise GrouperError(f"{path} has lists or objects too deep within one another: refused") from error
    if isinstance(data, dict | list):
        check_extent(data, str(path), MOST_VALUES)
    return data


def _all_theirs(modules: Any) -> bool:
    types = [m.get("type") if isinstance(m, dict) else None for m in modules] if isinstance(modules, list) else [None]
    return all(str(kind).startswith("sentence_transformers.") for kind in types)
