"""Families of types without an entry, each derived and proved once, on a small model of its class."""

import json
import logging
import tempfile
import threading
import time
from pathlib import Path

from grouper.errors import GrouperError
from grouper.families.family import Family

LOG = logging.getLogger("grouper")
_LOCK = threading.RLock()
_KNOWN: dict[str, Family | str] = {}  # proved, or why not, by configuration


def family_for(config: dict) -> Family:
    """Family of a decoder's configuration. Raises GrouperError if its class cannot be regrouped."""
    model_type = config["model_type"]
    key = json.dumps(config, sort_keys=True, default=str)
    with _LOCK:
        if key not in _KNOWN:
            try:
                _KNOWN[key] = _proved(config)
            except GrouperError as error:
                _KNOWN[key] = str(error)
        found = _KNOWN[key]
    if isinstance(found, str):
        raise GrouperError(f"models of type {model_type!r} are not supported: {found}")
    return found


def _proved(config: dict) -> Family:
    from grouper.families.derived.class_of import class_of
    from grouper.families.derived.derive import derive
    from grouper.families.derived.prove import prove

    start = time.monotonic()
    classes = class_of(config["model_type"])
    candidate = derive(classes, config)
    with tempfile.TemporaryDirectory(prefix="grouper-proof-") as folder:
        family = prove(candidate, Path(folder))
    LOG.info(f"{config['model_type']} was proved in {time.monotonic() - start:.1f} s")
    return family
