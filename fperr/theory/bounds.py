"""The papers' bound delta_sup = epsilon_max / G on the relative error of the gradient.

It models an absolute truncation error of at most epsilon_max in each coefficient of the gradient
(arXiv 2507.22428); it is not a proved bound on what PyTorch computes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


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
    natural = torch.tensor(log2_row_norms, dtype=torch.float64) * math.log(2)
    total = float(torch.logsumexp(natural, 0)) / math.log(2)
    return math.log2(epsilon_max) + total - log2_gradient_norm
