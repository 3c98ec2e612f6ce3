"""Bounds on the error of a loss's gradient: the papers', ours, and what follows for an attack.

Example:
    >>> import torch
    >>> from fperr import bounds
    >>> bounds.check(torch.tensor([[30.0, 1.0]]), torch.tensor([0]))["status"].tolist()
    ['dead']
"""

from fperr.bounds.accurate import (
    AccurateBound,
    accurate_cross_entropy,
    accurate_cross_entropy_errors,
)
from fperr.bounds.backward import backward_units
from fperr.bounds.checking import check
from fperr.bounds.cross_entropy import logit_gradient
from fperr.bounds.inputs import log2_input_gradient
from fperr.bounds.kernels import KERNELS, Accuracy, Kernel, accuracy
from fperr.bounds.papers import log2_delta_sup_input, paper
from fperr.bounds.stable import stable_ce_logit_gradient, stable_ce_relative_error

__all__ = [
    "KERNELS",
    "Accuracy",
    "AccurateBound",
    "Kernel",
    "accuracy",
    "accurate_cross_entropy",
    "accurate_cross_entropy_errors",
    "backward_units",
    "check",
    "log2_delta_sup_input",
    "log2_input_gradient",
    "logit_gradient",
    "paper",
    "stable_ce_logit_gradient",
    "stable_ce_relative_error",
]
