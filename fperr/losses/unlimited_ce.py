"""Cross-entropy as a format would compute its gradient if exponents had no limit: a diagnosis.

`fperr.attribute(why=True)` puts it between cross-entropy and stable cross-entropy: it mends the
underflow of probabilities, and keeps the cancellation in p_y - 1.
"""

import torch
from torch import Tensor

from fperr.losses.base import Context, Loss
from fperr.losses.classes import gather
from fperr.losses.log_odds import log_odds_against, others


def unlimited_cross_entropy(loss: Loss, logits: Tensor, label: Tensor, context: Context) -> Tensor:
    """A number whose gradient is that of cross-entropy over P = 1 - p_y, with p_y - 1 as rounded.

    The gradient is (q, (p_y - 1)/P), q the softmax over the other classes: p_i = P q_i does not
    underflow, and p_y - 1 is what the format computes, 0 where p_y rounds to 1. The value means
    nothing.
    """
    del loss
    z = logits.detach()
    # as PyTorch's kernel: exp, in float32 at least, of the rounded log-softmax
    log_p = gather(z.log_softmax(1), label)
    log_p = log_p if z.dtype == torch.float64 else log_p.to(torch.float32)
    difference = (log_p.exp() - 1).to(torch.float64)
    P = log_odds_against(z.to(torch.float64), label).sigmoid()
    of_others = others(z, label).softmax(1)  # float32 under autocast
    at_label = torch.where(difference == 0, 0.0, difference / P).to(of_others.dtype)
    weights = of_others.scatter(1, label[:, None], at_label[:, None])
    values = torch.where(weights == 0, 0.0, weights * logits).sum(1)
    return -values if context.targeted else values


UNLIMITED_CE = Loss(
    "unlimited_ce",
    "unlimited",
    unlimited_cross_entropy,
    "CE, exponents unlimited",
    "#56b4e9",
    full_name="Cross-entropy with unlimited exponents",
)
