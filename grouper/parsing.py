"""JSON from files that anybody may have written."""

import json
from typing import Any

from grouper.errors import GrouperError


def json_object(text: str, what: str) -> dict[str, Any]:
    """The object in a text. what: names it in the GrouperError that is raised where there is none."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrouperError(f"{what} is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise GrouperError(f"{what} is not JSON (no object in it)")
    return data
