"""How groupings are found, measured and picked.

>>> from search import search, SearchOptions  # doctest: +SKIP
>>> front = search("HuggingFaceTB/SmolLM2-135M", "run", SearchOptions(seed=1))  # doctest: +SKIP
"""

from search.evaluation import evaluate
from search.export_run import export_from_run
from search.pareto import ParetoFront
from search.picking import pick
from search.run import SearchOptions, search
from search.run_folder import RunFolder

__all__ = ["ParetoFront", "RunFolder", "SearchOptions", "evaluate", "export_from_run", "pick", "search"]
