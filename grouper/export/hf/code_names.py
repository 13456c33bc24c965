"""What names code in a model's files: code does not travel with an export, so neither does its name.

A loader that is allowed to run our modelling file would look for the named code, too, and take it from elsewhere.
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
    """The same JSON data without what names code, at any depth."""
    if isinstance(data, dict):
        return {key: without_code(value) for key, value in data.items() if key not in NAMES_CODE}
    return [without_code(value) for value in data] if isinstance(data, list) else data


def copy_without_code(source: str | Path, target: str | Path) -> None:
    """Copy a file. Of a configuration, what names code is dropped; modules.json of sentence-transformers is not copied
    where a module is not that library's own."""
    path = Path(source)
    data = _configuration(path)
    if path.name == "modules.json" and not _all_theirs(data):
        return
    clean = without_code(data)
    if clean == data:
        shutil.copyfile(source, target)
    else:
        write_text(Path(target), json.dumps(clean, indent=2) + "\n")  # keys in their order


def _configuration(path: Path) -> Any:
    """The data of a configuration; None of any other file, as vocabularies, and of what is no JSON. Raises GrouperError
    for one so deep that others may read what we cannot."""
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
