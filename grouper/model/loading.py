"""Loading by transformers, only here: no code that comes with a model runs, and the user is not prompted.

Without `trust_remote_code`, transformers asks on standard input whether a folder's code may run. The argument is not
passed on to classes that a file names (a `tokenizer_class` of AutoConfig) or nests (a `vision_config`), so the prompt
is disabled as well.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grouper.errors import GrouperError

_LOADING = threading.RLock()  # the switch is global in transformers, shared by all threads


def load(auto: str, folder: Path, own_code: bool = False, **options: Any) -> Any:
    """Call `from_pretrained` of the transformers class named `auto`.

    own_code: whether the folder's modelling file is Grouper's own and may run. Raises GrouperError where the folder
    needs any other code, and otherwise what transformers raises.
    """
    import transformers

    with refusing_code(folder):
        return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=own_code, **options)


@contextmanager
def refusing_code(name: object) -> Iterator[None]:
    """Make transformers refuse, within this block, the code that it would prompt for. name: name of the model, for the
    GrouperError that this raises."""
    from transformers import dynamic_module_utils

    with _LOADING:
        before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds to wait for an answer; 0: never ask
        try:
            yield
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise GrouperError(
                f"{name} asks for code of its own to be run (auto_map), which Grouper never does: give a copy that "
                "transformers loads without trust_remote_code"
            ) from error
        finally:
            dynamic_module_utils.TIME_OUT_REMOTE_CODE = before
