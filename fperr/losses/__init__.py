"""Losses that an attack ascends: one file for each, and their registry. Needs torch alone.

Each is a function `(logits, y, *, targets=None, reduction="mean")` for one's own loop, with a
module of the same name, and a record in the registry, by which `fperr.measure`, `fperr.attack`,
recordings and figures name it. `cross_entropy` has PyTorch's own arguments.

On the CPU they refuse classes that there are not, probabilities, and logits that are not finite. On
another device they do not look, as PyTorch's losses do not: the host would wait for the answer.

Example:
    >>> import torch
    >>> from fperr import losses
    >>> z, y = torch.tensor([[90.0, 1.0, 1.0]], requires_grad=True), torch.tensor([0])
    >>> losses.tmifpe(z, y).backward()
    >>> bool(z.grad.any())  # cross-entropy's own gradient is exactly 0 here
    True
"""

from fperr.losses.base import Context, Loss, LossFunction
from fperr.losses.comp_sum import (
    CompSumLoss,
    GeneralizedCrossEntropyLoss,
    LogisticLoss,
    MeanAbsoluteErrorLoss,
    comp_sum,
    generalized_cross_entropy,
    logistic,
    mean_absolute_error,
)
from fperr.losses.cross_entropy import CrossEntropyLoss, cross_entropy
from fperr.losses.cw import CWLoss, cw
from fperr.losses.dlr import DLRLoss, dlr
from fperr.losses.gama import GAMALoss, gama
from fperr.losses.linear_cross_entropy import linear_cross_entropy
from fperr.losses.mifpe import MIFPELoss, mifpe
from fperr.losses.pmifpe import PMIFPELoss, pmifpe
from fperr.losses.registry import LOSS_NAMES, LOSSES, LOSSES_BY_NAME, loss_named
from fperr.losses.stable_ce import StableCELoss, stable_ce
from fperr.losses.tmifpe import TMIFPELoss, tmifpe

__all__ = [
    "LOSSES",
    "LOSSES_BY_NAME",
    "LOSS_NAMES",
    "CWLoss",
    "CompSumLoss",
    "Context",
    "CrossEntropyLoss",
    "DLRLoss",
    "GAMALoss",
    "GeneralizedCrossEntropyLoss",
    "LogisticLoss",
    "Loss",
    "LossFunction",
    "MIFPELoss",
    "MeanAbsoluteErrorLoss",
    "PMIFPELoss",
    "StableCELoss",
    "TMIFPELoss",
    "comp_sum",
    "cross_entropy",
    "cw",
    "dlr",
    "gama",
    "generalized_cross_entropy",
    "linear_cross_entropy",
    "logistic",
    "loss_named",
    "mean_absolute_error",
    "mifpe",
    "pmifpe",
    "stable_ce",
    "tmifpe",
]
