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
    """The papers' bound epsilon_max / G on the relative error, as a logarithm to base 2.

    G = c (1 - p_l), with l the label or the target, whichever the loss uses: the same expression in
    all four scenarios. The bound is meant for |v_hat - v|_1 / |v|_1, where |v|_1 = 2 G. It models
    underflow only and is not proved for what PyTorch computes; `logit_gradient` is. Source: arXiv
    2507.22428.

    Args:
        logits: Logits (batch, K), any floating-point dtype; -inf if a class is absent.
        labels: Labels y or targets y_t (batch,), int64.
        c: Scale on the logits, (batch,) or a number: 1 for plain cross-entropy, T/Delta for
            (T-)MIFPE.
        epsilon_max: Largest absolute truncation error; None: the unit roundoff of `format`, the
            papers' choice. Other sensible values are half the format's smallest subnormal number,
            and its smallest normal number.
        format: Name of a format, or a `Format`.
        per_class: Whether epsilon_max is the error of each coefficient of the gradient. The result
            is then K epsilon_max / (2 G), with K the number of classes present, because the
            coefficient of an absent class is 0.

    Returns:
        The logarithms to base 2 (batch,), float64, because G may be e^-1000; inf if the label is
        the only class present, because G is 0 then.

    Raises:
        TypeError, ValueError: shapes, labels or an epsilon_max that make no sense.

    Example:
        1 - p_l is about 2^-11 here, and float32's unit roundoff is 2^-24.

        >>> import torch
        >>> from fperr import bounds
        >>> logits, labels = torch.tensor([[9.0, 1.0, 0.0]]), torch.tensor([0])
        >>> [round(bound, 1) for bound in bounds.paper(logits, labels).tolist()]
        [-12.9]
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
    """log2(epsilon_max / G): a bound on |v_hat - v|_1 / |v|_1 under the total model.

    Args:
        log2_G: Logarithm to base 2 of G = c (1 - p_l), any shape.
        epsilon_max: Largest absolute truncation error; the papers' choice is u.
    """
    return math.log2(epsilon_max) - log2_G


def log2_delta_sup_input(
    log2_row_norms: Sequence[float], log2_gradient_norm: float, epsilon_max: float
) -> float:
    """log2(epsilon_max sum_i |grad z_i|_2 / |g|_2): the papers' per-class model at the input.

    The result bounds the relative error of the input gradient g if each coefficient of the logit
    gradient is off by epsilon_max at most, and the network itself is exact. Source: arXiv
    2507.22428.

    Args:
        log2_row_norms: Logarithms to base 2 of the norms of the rows of the Jacobian, K numbers.
        log2_gradient_norm: Logarithm to base 2 of |g|_2, which may be far outside float64's range.
        epsilon_max: Largest absolute truncation error of a coefficient.

    Returns:
        The logarithm to base 2 of the bound.

    Example:
        Two rows of norm 2^3, a gradient of norm 2^4, and float32's unit roundoff 2^-24.

        >>> from fperr import bounds
        >>> round(bounds.log2_delta_sup_input([3.0, 3.0], 4.0, 2.0**-24), 6)
        -24.0
    """
    return log2_input_gradient([epsilon_max] * len(log2_row_norms), log2_row_norms) - (
        log2_gradient_norm
    )
