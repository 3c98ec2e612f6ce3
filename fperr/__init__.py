"""fperr tells how much of an adversarial-attack result is floating-point error.

Public is what `__all__` names here and in `fperr.exact`, `fperr.bounds`, `fperr.losses` and
`fperr.zoo`, the names of `fperr.errors` and `fperr.formats`, and the commands. Everything else, and
every name with a leading underscore, may change without notice.
"""

from importlib.metadata import PackageNotFoundError, version

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
