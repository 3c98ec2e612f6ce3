"""fperr tells how much of an adversarial-attack result is floating-point error."""

from fperr import errors, exact, zoo
from fperr.measurement import measure
from fperr.report.frame import Report

__all__ = ["Report", "errors", "exact", "measure", "zoo"]
