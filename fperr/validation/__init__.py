"""Checks of what the bounds assume, and attempts to refute them."""

from fperr.validation.falsify import falsify
from fperr.validation.sweep import sweep

__all__ = ["falsify", "sweep"]
