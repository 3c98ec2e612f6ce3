"""fperr tells how much of an adversarial-attack result is floating-point error.

Public is what `__all__` names here and in `fperr.exact`, `fperr.bounds`, `fperr.losses` and
`fperr.zoo`, the names of `fperr.errors` and `fperr.formats`, and the commands. Everything else, and
every name with a leading underscore, may change without notice.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fperr import bounds, errors, exact, formats, losses, zoo
    from fperr.attacks import AttackResult, attack
    from fperr.attribution import Attribution, attribute
    from fperr.errors import FperrError
    from fperr.measurement import measure, trace_layers
    from fperr.recording import Trace, record
    from fperr.repair import Rescaled, repaired
    from fperr.report.frame import Report
    from fperr.report.layers import LayerReport
    from fperr.report.verdict import Thresholds

__version__: str
"""The version of the installed package, or `"not installed"`.

Example:
    >>> import fperr
    >>> isinstance(fperr.__version__, str)
    True
"""
try:
    __version__ = version("fperr")
except PackageNotFoundError:  # its source is on the path
    __version__ = "not installed"

__all__ = [
    "AttackResult",
    "Attribution",
    "FperrError",
    "LayerReport",
    "Report",
    "Rescaled",
    "Thresholds",
    "Trace",
    "__version__",
    "attack",
    "attribute",
    "bounds",
    "errors",
    "exact",
    "formats",
    "losses",
    "measure",
    "record",
    "repaired",
    "trace_layers",
    "zoo",
]
# the module of each public name; modules themselves are looked up by their own
_HOMES = {
    "AttackResult": "attacks",
    "Attribution": "attribution",
    "FperrError": "errors",
    "LayerReport": "report.layers",
    "Report": "report.frame",
    "Rescaled": "repair",
    "Thresholds": "report.verdict",
    "Trace": "recording",
    "attack": "attacks",
    "attribute": "attribution",
    "measure": "measurement",
    "record": "recording",
    "repaired": "repair",
    "trace_layers": "measurement",
}


def __getattr__(name: str) -> object:
    """A public name, loaded when it is first used: a loss needs neither plots nor exact numbers."""
    if name in _HOMES:
        value = getattr(import_module(f"fperr.{_HOMES[name]}"), name)
    elif name in __all__:
        value = import_module(f"fperr.{name}")
    else:
        raise AttributeError(f"module 'fperr' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
