"""Search for groupings of heads, measurement of layouts, and choice of one.

>>> from search import SearchOptions
>>> SearchOptions(seed=1).method
('qcqa-ac', 'qcqa-ec')
"""

from typing import TYPE_CHECKING

from grouper.lazy import lazily

if TYPE_CHECKING:
    from search.evaluation.layouts import evaluate as evaluate
    from search.export_run import export_from_run as export_from_run
    from search.one_call import regroup as regroup
    from search.options import SearchOptions as SearchOptions
    from search.run import search as search
    from search.runs.folder import RunFolder as RunFolder
    from search.runs.pareto import ParetoFront as ParetoFront
    from search.runs.picking import pick as pick
    from search.runs.selection import Selection as Selection

MODULES = {
    "ParetoFront": "search.runs.pareto",
    "RunFolder": "search.runs.folder",
    "SearchOptions": "search.options",
    "Selection": "search.runs.selection",
    "evaluate": "search.evaluation.layouts",
    "export_from_run": "search.export_run",
    "pick": "search.runs.picking",
    "regroup": "search.one_call",
    "search": "search.run",
}
__all__ = [*MODULES]
__getattr__ = lazily(__name__, MODULES)
