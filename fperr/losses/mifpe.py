"""MIFPE: cross-entropy of logits that are rescaled to the margin T = 1 (or another fixed T)."""

from fperr.losses.base import Loss
from fperr.losses.ce import scaled_cross_entropy

MIFPE = Loss(
    "mifpe", "cross_entropy", scaled_cross_entropy, "MIFPE", "#de8f05", 1.0, is_scaled=True
)
MIFPE_SHIFTED = Loss(
    "mifpe_shifted", "cross_entropy", scaled_cross_entropy, "MIFPE, shifted", "#fbafe4", 1.0,
    is_scaled=True, is_shifted=True,
)  # fmt: skip
