"""How groupings are found, measured and picked.

>>> from search import SearchOptions
>>> SearchOptions(seed=1).method
('qcqa-ac', 'qcqa-ec')
"""

from grouper.lazy import lazily

MODULES = {
    "ParetoFront": "search.pareto",
    "RunFolder": "search.run_folder",
    "SearchOptions": "search.options",
    "Selection": "search.picking",
    "evaluate": "search.evaluation",
    "export_from_run": "search.export_run",
    "pick": "search.picking",
    "regroup": "search.one_call",
    "search": "search.run",
}
__all__ = [*MODULES]
__getattr__ = lazily(__name__, MODULES)
