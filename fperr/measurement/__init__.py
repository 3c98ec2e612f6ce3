"""Measures the floating-point error of attack gradients: model and inputs in, report out."""

from fperr.measurement.entry import measure
from fperr.measurement.estimate import Estimate, estimate
from fperr.measurement.layers import trace_layers

__all__ = ["Estimate", "estimate", "measure", "trace_layers"]
