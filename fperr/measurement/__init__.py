"""A model and inputs in, a report out: the floating-point error of the gradients of attacks."""

from fperr.measurement.lab import measure

__all__ = ["measure"]
