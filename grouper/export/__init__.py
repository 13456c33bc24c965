"""Write a regrouped model that engines run: choose its class, write it, test it, say what was done.

The package itself is what one calls: `from grouper import export; export(checkpoint, layout, "out")` is
`grouper.export.write.export_model`, and `import grouper.export.self_test` still finds the module.
"""

import sys
from types import ModuleType

from grouper.export.format import ExportOptions
from grouper.export.write import Exported, export_model

__all__ = ["ExportOptions", "Exported", "export_model"]


class _CallableModule(ModuleType):
    __call__ = staticmethod(export_model)


sys.modules[__name__].__class__ = _CallableModule
