"""The papers' bound delta_sup = epsilon_max / G on the relative error of the gradient.

It models an absolute truncation error of at most epsilon_max in each coefficient of the gradient
(arXiv 2507.22428): underflow, that is. It is not a proved bound on what PyTorch computes, whose
cross-entropy has a second mechanism, cancellation in p_l - 1: `logit_gradient` covers both.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fperr.bounds.arguments import check_labels, format_of
from fperr.bounds.inputs import log2_input_gradient
from fperr.caller_state import in_neutral_state
from fperr.formats import FLOAT32, Format
from fperr.theory.scaling import log2_G, present_classes


@in_neutral_state
def paper(
    logits: Tensor,
    labels: Tensor,
    c: Tensor | float = 1.0,
    *,
    epsilon_max: float | None = None,
    format: Format | str = FLOAT32,
    per_class: bool = False,
) -> Tensor:
    """log2 of delta_sup = epsilon_max / G in all four scenarios, at the logits.

    G = c (1 - p_l) with l the label or the target, whichever of the two the loss uses: the same
    expression for all four. It is to bound |v_hat - v|_1 / |v|_1; |v|_1 = 2 G.

    Args:
        logits: (batch, K), any floating-point dtype; -inf where a class is absent.
        labels: (batch,) int64, y or y_t.
        c: (batch,) or a number, the scale; 1 for plain cross-entropy, T/Delta for (T-)MIFPE.
        epsilon_max: the absolute truncation error; None: u of `format`, the papers' choice. Others
            that make sense: half its smallest subnormal number, its smallest normal one.
        format: name or `Format`.
        per_class: epsilon_max is that of each coefficient: K epsilon_max / (2 G), with K the number
            of classes present, for the coefficient of an absent one is 0.

    Returns:
        (batch,) float64; logarithms, because G may be e^-1000; infinite where the label is the only
            class present, for G is 0 there.

    Raises:
        TypeError, ValueError: shapes, labels or an epsilon_max that make no sense.
    """
    check_labels(logits, labels)
    fmt = format_of(format)
    size = fmt.unit_roundoff if epsilon_max is None else epsilon_max
    if not size > 0:
        raise ValueError(f"epsilon_max must be positive, got {epsilon_max!r}")
    scale = torch.as_tensor(c, dtype=torch.float64, device=logits.device).expand(len(logits))
    K = logits.shape[1]
    total = log2_delta_sup_logit(log2_G(logits, labels, scale), size * (K / 2 if per_class else 1))
    present = present_classes(logits).to(torch.float64)
    return total + (present / K).log2() if per_class else total


def log2_delta_sup_logit(log2_G: Tensor, epsilon_max: float) -> Tensor:
    """log2(epsilon_max / G): bounds |v_hat - v|_1 / |v|_1 under the total model.

    Args:
        log2_G: log2 of G = c (1 - p_l), any shape.
        epsilon_max: the largest absolute truncation error; the papers' choice is u.
    """
    return math.log2(epsilon_max) - log2_G


def log2_delta_sup_input(
    log2_row_norms: Sequence[float], log2_gradient_norm: float, epsilon_max: float
) -> float:
    """log2(epsilon_max sum_i |grad z_i|_2 / |g|_2): the per-class model at the input.

    Args:
        log2_row_norms: K numbers, log2 of the norms of the rows of the Jacobian.
        log2_gradient_norm: log2 of |g|_2, which may be far outside float64's range.
        epsilon_max: the largest absolute truncation error of one coefficient.
    """
    return log2_input_gradient([epsilon_max] * len(log2_row_norms), log2_row_norms) - (
        log2_gradient_norm
    )
