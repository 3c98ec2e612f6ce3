"""fperr tells how much of an adversarial-attack result is floating-point error."""

from fperr import bounds, errors, exact, formats, zoo
from fperr.attacks import AttackResult, attack
from fperr.errors import FperrError
from fperr.measurement import measure, trace_layers
from fperr.report.frame import Report
from fperr.report.layers import LayerReport
from fperr.report.verdict import Thresholds

__all__ = [
    "AttackResult",
    "FperrError",
    "LayerReport",
    "Report",
    "Thresholds",
    "attack",
    "bounds",
    "errors",
    "exact",
    "formats",
    "measure",
    "trace_layers",
    "zoo",
]
