"""A model and inputs in, a report out: the floating-point error of the gradients of attacks."""

from fperr.measurement.entry import measure
from fperr.measurement.estimate import Estimate, estimate
from fperr.measurement.layers import trace_layers

__all__ = ["Estimate", "estimate", "measure", "trace_layers"]
