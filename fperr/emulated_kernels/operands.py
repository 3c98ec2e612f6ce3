"""Operands of products, cut to fewer significand bits."""

import torch
from torch import Tensor

from fperr.formats.record import OperandRounding

_FRACTION_BITS = 23  # of float32


def rounded_to_bits(numbers: Tensor, bits: int, rounding: OperandRounding) -> Tensor:
    """Float32 numbers with fewer significand bits, as a tensor core takes its operands.

    Args:
        numbers: Float32 numbers; NaN and infinities stay.
        bits: Significand bits that are kept, the implicit bit included; 11 for TF32.
        rounding: `"nearest_away"` (ties away from zero), `"nearest_even"` or `"truncated"`.

    Returns:
        Float32 numbers of the same shape. What rounds beyond the largest is infinite.

    Example:
        >>> import torch
        >>> third = torch.tensor([1 / 3])
        >>> bool(rounded_to_bits(third, 11, "nearest_away") == 1365 / 4096)
        True
    """
    dropped = _FRACTION_BITS + 1 - bits
    pattern = numbers.contiguous().view(torch.int32)
    step = 1 << dropped
    if rounding == "nearest_away":
        pattern = pattern + step // 2
    elif rounding == "nearest_even":
        pattern = pattern + (step // 2 - 1) + ((pattern >> dropped) & 1)
    kept = (pattern & ~(step - 1)).view(torch.float32)
    return torch.where(numbers.isfinite(), kept, numbers)
