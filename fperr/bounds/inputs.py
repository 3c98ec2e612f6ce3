"""From the logits to the input: what an error of the logit gradient can become there."""

import math
from collections.abc import Sequence

import torch

from fperr.caller_state import in_neutral_state


@in_neutral_state
def log2_input_gradient(errors: Sequence[float], log2_row_norms: Sequence[float]) -> float:
    """log2 of sum_i |v_hat - v|_i |grad z_i|_2: bounds |J^T v_hat - J^T v|_2.

    Args:
        errors: K numbers, bounds on |v_hat - v|.
        log2_row_norms: K numbers, log2 of the norms of the rows of J.
    """
    pairs = zip(errors, log2_row_norms, strict=True)
    logs = [math.log2(e) + norm for e, norm in pairs if e > 0 and norm > -math.inf]
    if not logs:
        return -math.inf
    natural = torch.tensor(logs, dtype=torch.float64) * math.log(2)
    return float(torch.logsumexp(natural, 0)) / math.log(2)
