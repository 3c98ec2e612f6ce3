"""Numbers with fewer significand bits: operands of products, and their partial sums."""

import torch
from torch import Tensor

from fperr.formats.record import Rounding

_PATTERNS = {torch.float32: (torch.int32, 23), torch.float64: (torch.int64, 52)}  # fraction bits


def rounded_to_bits(numbers: Tensor, bits: int, rounding: Rounding) -> Tensor:
    """Numbers with fewer significand bits, as a tensor core takes its operands.

    Args:
        numbers: Float32 or float64 numbers; NaN and infinities stay.
        bits: Significand bits that are kept, the implicit bit included; 11 for TF32.
        rounding: `"nearest_away"` (ties away from zero), `"nearest_even"` or `"truncated"`.

    Returns:
        Numbers of the same shape and dtype. What rounds beyond the largest is infinite.

    Example:
        >>> import torch
        >>> third = torch.tensor([1 / 3])
        >>> bool(rounded_to_bits(third, 11, "nearest_away") == 1365 / 4096)
        True
    """
    integer, fraction_bits = _PATTERNS[numbers.dtype]
    dropped = fraction_bits + 1 - bits
    pattern = numbers.contiguous().view(integer)
    step = 1 << dropped
    if rounding == "nearest_away":
        pattern = pattern + step // 2
    elif rounding == "nearest_even" and dropped:
        pattern = pattern + (step // 2 - 1) + ((pattern >> dropped) & 1)
    kept = (pattern & ~(step - 1)).view(numbers.dtype)
    return torch.where(numbers.isfinite(), kept, numbers)
