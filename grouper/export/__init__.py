"""Export of a regrouped model for serving engines: choose its class, write it, test it, document it.

The package itself is callable: `from grouper import export; export(checkpoint, layout, "out")` runs
`grouper.export.write.export_model`, and `import grouper.export.self_test` still finds the module.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from grouper.lazy import lazily

if TYPE_CHECKING:
    from grouper.export.options import ExportOptions as ExportOptions
    from grouper.export.write import Exported as Exported
    from grouper.export.write import export_model as export_model

MODULES = {
    "ExportOptions": "grouper.export.options",
    "Exported": "grouper.export.write",
    "export_model": "grouper.export.write",
}
__all__ = [*MODULES]
__getattr__ = lazily(__name__, MODULES)


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> "Exported":
        return self.export_model(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
