"""Process that reads model types, one a line, and writes what a proof says of each, as a line of JSON.

Run by survey.py: `python -m grouper.families.derived.survey_one`."""

import json
import os
import re
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grouper.errors import GrouperError, as_one_line
from grouper.families.configuration import family_of
from grouper.families.decoders import FAMILIES, REFUSED
from grouper.families.derived.candidate import Candidate, attention_class, running
from grouper.families.derived.classes import Classes, class_of
from grouper.families.derived.known import proof_of
from grouper.families.derived.proof import prove
from grouper.families.derived.remembered import Proved
from grouper.families.derived.small import EVERY_SIZE, MULTI_HEAD, full_settings
from grouper.families.derived.survey import NO_ATTENTION, Surveyed
from grouper.names import shortened

NEEDED: dict[str, dict[str, Any]] = {  # what the defaults of a class leave open, or set to what few models have
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "falcon": {"multi_query": False, "num_kv_heads": 8},
}
TEMPORARY = re.compile(rf"{re.escape(tempfile.gettempdir())}\S*/")


def surveyed(model_type: str) -> Surveyed:
    """Row of a model type, with the configuration that its class has by default."""
    start, classes, attention = time.monotonic(), None, ""
    try:
        with as_one_line("transformers cannot make its model"):
            classes = class_of(model_type)
            attention = attention_of(classes.module, classes.model)
            config = {**NEEDED.get(model_type, {}), "model_type": model_type}
            if not attention:
                return Surveyed(model_type, reason=NO_ATTENTION)
            if model_type in REFUSED:
                return Surveyed(model_type, attention, classes.kind, reason=REFUSED[model_type])
            if is_composed(classes) and model_type not in FAMILIES:
                return Surveyed(model_type, attention, classes.kind, reason="it is made of models of other types")
            found = prove_entry(model_type, config) if model_type in FAMILIES else proof_of(config)
    except GrouperError as error:
        why = shortened(TEMPORARY.sub("", str(error)), 300)
        return Surveyed(model_type, attention, classes.kind if classes else "", reason=why)
    family, seconds = found.family, round(time.monotonic() - start, 1)
    offered = family.export_classes(family.as_phi is not None)
    named = found.attention or attention
    return Surveyed(model_type, named, classes.kind, True, not family.proved, seconds, "", offered)


def is_composed(classes: Classes) -> bool:
    """Whether a type is made of models that have types of their own, as vision and language."""
    from transformers import CONFIG_MAPPING, AutoConfig

    parts = (getattr(classes.config, "sub_configs", None) or {}).values()
    types = {kind.__name__ for kind in CONFIG_MAPPING.values()} if parts else set()
    return any(part is AutoConfig or part.__name__ in types for part in parts)


def prove_entry(model_type: str, config: dict[str, Any]) -> Proved:
    """The entry of a type, proved like a family that was derived. Raises GrouperError if a step fails."""
    start, family = time.monotonic(), family_of(config)
    full, names = full_settings(model_type, config)
    choice = EVERY_SIZE if family.stock else (MULTI_HEAD,)
    _, _, model, seen = running(class_of(model_type), full, names, choice)
    with tempfile.TemporaryDirectory(prefix="grouper-proof-") as folder:
        found = prove(Candidate(family, model), Path(folder))
    if found != family:
        raise GrouperError("its entry offers export classes that the proof does not")
    return Proved(family, attention_class(model, seen), round(time.monotonic() - start, 1))


def attention_of(module: Any, model: type) -> str:
    """Name of the attention class that a module of transformers defines; the first one of several."""
    import torch

    found = [n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, torch.nn.Module)]
    return next((n for n in found if re.search(r"Attention(?!Layer|Block)\w*$", n)), "")


def main() -> None:
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # classes may print
    for line in sys.stdin:
        print(json.dumps(asdict(surveyed(line.strip()))), file=answers, flush=True)


if __name__ == "__main__":
    main()
