"""Families of types without an entry, each derived and proved once, on a small model of its class."""

import json
import logging
import tempfile
import threading
import time
from pathlib import Path

from grouper.errors import GrouperError, as_one_line
from grouper.families.derived.classes import class_of
from grouper.families.derived.remembered import Proved, keep, kept, key_of
from grouper.families.derived.small import FREE, full_settings, small_config
from grouper.families.family import Family
from grouper.threads import one_thread

LOG = logging.getLogger("grouper")
_LOCK = threading.RLock()
_KNOWN: dict[str, Family | str] = {}  # proved, or why not, by configuration
_NEW: set[str] = set()  # keys of the proofs of this process


def family_for(config: dict) -> Family:
    """Family of a configuration whose type has no entry. Raises GrouperError if its class cannot be regrouped."""
    key = _as_key(config)
    with _LOCK:
        if key not in _KNOWN:
            try:
                _KNOWN[key] = proof_of(config).family
            except GrouperError as error:
                _KNOWN[key] = str(error)
        found = _KNOWN[key]
    if isinstance(found, str):
        raise GrouperError(f"models of type {config['model_type']!r} are not supported: {found}")
    return found


def how_proved(config: dict) -> str:
    """Words for the proof of a configuration that is supported."""
    now = " just now" if _as_key(config) in _NEW else ""
    return f"supported (proved{now} on a small model of this class)"


def _as_key(config: dict) -> str:
    return json.dumps(config, sort_keys=True, default=str)


def proof_of(config: dict) -> Proved:
    """Proof for a configuration: one that is remembered, or a new one. Raises GrouperError that says what is unlike, or
    which step failed."""
    model_type = config["model_type"]
    with as_one_line("transformers does not take this config.json"):
        full, names = full_settings(model_type, config)
    key = key_of(model_type, small_config(full, names, FREE))
    found = kept(key)
    if found is None:
        LOG.info(f"proving on a small model that {model_type} models can be regrouped")
        found = _proved(model_type, full, names)
        keep(key, found)
        _NEW.add(_as_key(config))
    return found


def _proved(model_type: str, full: dict, names: dict[str, str]) -> Proved:
    from grouper.families.derived.candidate import derive
    from grouper.families.derived.proof import prove

    start = time.monotonic()
    with (
        as_one_line("its class ends in an error"),
        one_thread(),
        tempfile.TemporaryDirectory(prefix="grouper-proof-") as folder,
    ):
        candidate = derive(class_of(model_type), full, names)
        family = prove(candidate, Path(folder))
    return Proved(family, candidate.attention, round(time.monotonic() - start, 1))
