"""Losses that an attack ascends: one file for each, and their registry. Needs torch alone."""

from fperr.losses.base import Context, Loss, LossFunction
from fperr.losses.registry import LOSS_NAMES, LOSSES, loss_named

__all__ = ["LOSSES", "LOSS_NAMES", "Context", "Loss", "LossFunction", "loss_named"]
