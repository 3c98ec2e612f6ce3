"""P-MIFPE: rescaled to the margin that minimises a model of the whole error in the format."""

from fperr.losses.base import Loss
from fperr.losses.ce import scaled_cross_entropy

PMIFPE = Loss(
    "pmifpe", "cross_entropy", scaled_cross_entropy, "P-MIFPE", "#ece133",
    is_scaled=True, units=1.0,
)  # fmt: skip
