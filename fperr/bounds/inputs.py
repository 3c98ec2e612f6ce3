"""From the logits to the input: the effect of an error of the logit gradient."""

import math
from collections.abc import Sequence

import torch

from fperr.caller_state import in_neutral_state


@in_neutral_state
def log2_input_gradient(errors: Sequence[float], log2_row_norms: Sequence[float]) -> float:
    """Bound the error of the input gradient that an error of the logit gradient causes.

    The result is log2 of sum_i |v_hat - v|_i |grad z_i|_2, an upper bound on |J^T v_hat - J^T v|_2,
    where J is the exact Jacobian of the logits. Logarithms are used because the norms may be far
    outside float64's range.

    Args:
        errors: Bounds on |v_hat - v|, K numbers, as `logit_gradient` returns them for one sample.
        log2_row_norms: Logarithms to base 2 of the norms of the rows of J, K numbers.

    Returns:
        The logarithm to base 2 of the bound; -inf if every term is zero.

    Raises:
        ValueError: the two are not equally long.

    Example:
        Two classes, each with an error of 1 and a row of norm 2^3: 2^3 + 2^3 = 2^4.

        >>> from fperr import bounds
        >>> round(bounds.log2_input_gradient([1.0, 1.0], [3.0, 3.0]), 6)
        4.0
    """
    pairs = zip(errors, log2_row_norms, strict=True)
    logs = [math.log2(e) + norm for e, norm in pairs if e > 0 and norm > -math.inf]
    if not logs:
        return -math.inf
    natural = torch.tensor(logs, dtype=torch.float64) * math.log(2)
    return float(torch.logsumexp(natural, 0)) / math.log(2)
