"""T-MIFPE: cross-entropy of logits rescaled to the margin t*, which minimises the papers' bound."""

from fperr.losses.base import Loss
from fperr.losses.ce import scaled_cross_entropy

TMIFPE = Loss("tmifpe", "cross_entropy", scaled_cross_entropy, "T-MIFPE", "#029e73", is_scaled=True)
TMIFPE_SHIFTED = Loss(
    "tmifpe_shifted", "cross_entropy", scaled_cross_entropy, "T-MIFPE, shifted", "#949494",
    is_scaled=True, is_shifted=True,
)  # fmt: skip
