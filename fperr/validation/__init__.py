"""Checks of what the bounds assume, and attempts to refute them."""

from fperr.validation.falsification import falsify
from fperr.validation.kernel_sweep import sweep

__all__ = ["falsify", "sweep"]
