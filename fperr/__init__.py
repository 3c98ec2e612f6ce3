"""fperr tells how much of an adversarial-attack result is floating-point error."""

from fperr import errors, exact, zoo
from fperr.measurement import measure
from fperr.report.frame import Report
from fperr.report.verdict import Thresholds

__all__ = ["Report", "Thresholds", "errors", "exact", "measure", "zoo"]
