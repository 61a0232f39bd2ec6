"""ganbench: evaluate and reproduce generative image models.

`ganbench.evaluate` measures images or a model, `ganbench.Accumulator` batch by batch, `ganbench.load_results` reads
stored results into a frame, and mistakes raise `ganbench.UserError`. Importing this package imports nothing heavy:
torch is loaded with the first of these that needs it.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Accumulator", "UserError", "evaluate", "load_results"]

if TYPE_CHECKING:
    from ganbench.api import Accumulator, evaluate, load_results
    from ganbench.base.errors import UserError

_WHERE = {
    "Accumulator": "ganbench.api", "evaluate": "ganbench.api", "load_results": "ganbench.api",
    "UserError": "ganbench.base.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'ganbench' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
