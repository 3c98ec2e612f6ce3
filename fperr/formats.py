"""Binary floating-point formats and their constants."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format: rounding to nearest, ties to even, gradual underflow.

    Attributes:
        name: Name in tables and on the command line, e.g. `"bfloat16"`.
        dtype: Dtype of torch that stores the format's numbers.
        precision: Significand bits p of the operands of a product, the implicit bit included.
        emin: Exponent of the smallest normal binade.
        emax: Exponent of the largest binade.
        scale_exponent: Exponent k of the cap `2**k` on the logit scale c.

    Example:
        >>> format_named("float16").unit_roundoff == 2.0**-11
        True
    """

    name: str
    dtype: torch.dtype
    precision: int
    emin: int
    emax: int
    scale_exponent: int

    @property
    def unit_roundoff(self) -> float:
        """The unit roundoff u = 2**-p: the largest relative error of rounding a normal number."""
        return 2.0**-self.precision

    @property
    def storage_unit_roundoff(self) -> float:
        """The unit roundoff of `dtype`; it differs from `unit_roundoff` for TF32 only."""
        return float(torch.finfo(self.dtype).eps) / 2

    @property
    def smallest_normal(self) -> float:
        """The smallest positive normal number, 2**emin."""
        return 2.0**self.emin

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive number of `dtype`, eta = 2**(emin - p + 1) with its own p."""
        return float(torch.finfo(self.dtype).smallest_normal * torch.finfo(self.dtype).eps)

    @property
    def largest(self) -> float:
        """The largest finite number F of `dtype`."""
        return float(torch.finfo(self.dtype).max)


FLOAT16 = Format("float16", torch.float16, 11, -14, 15, 13)
BFLOAT16 = Format("bfloat16", torch.bfloat16, 8, -126, 127, 63)
TF32 = Format("tf32", torch.float32, 11, -126, 127, 63)
FLOAT32 = Format("float32", torch.float32, 24, -126, 127, 63)
FLOAT64 = Format("float64", torch.float64, 53, -1022, 1023, 511)

FORMATS = {f.name: f for f in (FLOAT16, BFLOAT16, TF32, FLOAT32, FLOAT64)}


def format_named(name: str) -> Format:
    """The format called `name`.

    Raises:
        ValueError: No format has that name.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}: expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def of_dtype(dtype: torch.dtype) -> Format:
    """The format that stores `dtype`, e.g. `FLOAT32` for `torch.float32` (never TF32).

    Raises:
        ValueError: `dtype` is not float16, bfloat16, float32 or float64.
    """
    for candidate in (FLOAT16, BFLOAT16, FLOAT32, FLOAT64):
        if candidate.dtype == dtype:
            return candidate
    raise ValueError(
        f"a floating-point dtype is needed (float16, bfloat16, float32 or float64), got {dtype}"
    )
