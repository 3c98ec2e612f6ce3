"""fperr tells how much of an adversarial-attack result is floating-point error."""

from importlib.metadata import version

from fperr import bounds, errors, exact, formats, zoo
from fperr.attacks import AttackResult, attack
from fperr.errors import FperrError
from fperr.measurement import measure, trace_layers
from fperr.recording import Trace, record
from fperr.report.frame import Report
from fperr.report.layers import LayerReport
from fperr.report.verdict import Thresholds

__version__ = version("fperr")

__all__ = [
    "AttackResult",
    "FperrError",
    "LayerReport",
    "Report",
    "Thresholds",
    "Trace",
    "__version__",
    "attack",
    "bounds",
    "errors",
    "exact",
    "formats",
    "measure",
    "record",
    "trace_layers",
    "zoo",
]
