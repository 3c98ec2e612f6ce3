"""Binary floating-point formats and their constants.

Example:
    >>> from fperr import formats
    >>> formats.FLOAT16.largest
    65504.0
"""

from dataclasses import dataclass
from typing import Literal

import torch

OperandRounding = Literal["nearest_away", "nearest_even", "truncated"]


@dataclass(frozen=True, slots=True)
class Emulation:
    """How the kernels of a GPU compute, for numbers of one dtype.

    Attributes:
        convolution_bits: Significand bits that the operands of convolutions keep, forward and
            backward; None: all.
        matrix_product_bits: The same for matrix products.
        operand_rounding: How operands lose their bits.
        computes_in_float32: Whether every operation computes in float32 and rounds its results
            once, as the kernels for half formats do.

    Example:
        >>> from fperr import formats
        >>> formats.FLOAT32_CUDA.emulation.convolution_bits
        11
    """

    convolution_bits: int | None = None
    matrix_product_bits: int | None = None
    operand_rounding: OperandRounding = "nearest_away"
    computes_in_float32: bool = False


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
        emulation: Kernels of a GPU that are emulated; None: the device's own are run.

    Example:
        >>> from fperr import formats
        >>> formats.FLOAT16.unit_roundoff == 2.0**-11
        True
    """

    name: str
    dtype: torch.dtype
    precision: int
    emin: int
    emax: int
    scale_exponent: int
    emulation: Emulation | None = None

    @property
    def is_half(self) -> bool:
        """Whether numbers are stored in float16 or bfloat16."""
        return self.dtype in (torch.float16, torch.bfloat16)

    @property
    def coarsest_unit_roundoff(self) -> float:
        """The largest unit roundoff of stored numbers and of operands of products."""
        emulation = self.emulation or Emulation()
        bits = [emulation.convolution_bits, emulation.matrix_product_bits, self.precision]
        return 2.0 ** -min(b for b in bits if b is not None)

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
"""IEEE half precision, binary16.

Example:
    >>> from fperr import formats
    >>> formats.FLOAT16.smallest_subnormal == 2.0**-24
    True
"""
BFLOAT16 = Format("bfloat16", torch.bfloat16, 8, -126, 127, 63)
"""Brain floating point: the range of float32 with 8 significand bits.

Example:
    >>> from fperr import formats
    >>> formats.BFLOAT16.unit_roundoff == 2.0**-8
    True
"""
TF32 = Format("tf32", torch.float32, 11, -126, 127, 63)
"""TensorFloat-32: numbers stored as float32, whose products use 11 significand bits.

Example:
    >>> from fperr import formats
    >>> formats.TF32.unit_roundoff / formats.TF32.storage_unit_roundoff == 2.0**13
    True
"""
FLOAT32 = Format("float32", torch.float32, 24, -126, 127, 63)
"""IEEE single precision, binary32.

Example:
    >>> from fperr import formats
    >>> formats.FLOAT32.unit_roundoff == 2.0**-24
    True
"""
FLOAT64 = Format("float64", torch.float64, 53, -1022, 1023, 511)
"""IEEE double precision, binary64.

Example:
    >>> from fperr import formats
    >>> formats.FLOAT64.unit_roundoff == 2.0**-53
    True
"""

FLOAT32_CUDA = Format("float32@cuda", torch.float32, 24, -126, 127, 63, Emulation(11))
"""Float32 by PyTorch's defaults on an Ampere GPU or later, emulated: convolutions in TF32.

Example:
    >>> from fperr import formats
    >>> formats.FLOAT32_CUDA.emulation.matrix_product_bits is None
    True
"""
TF32_CUDA = Format("tf32@cuda", torch.float32, 11, -126, 127, 63, Emulation(11, 11))
"""TF32 in convolutions and matrix products, emulated.

Example:
    >>> from fperr import formats
    >>> formats.TF32_CUDA.emulation.matrix_product_bits
    11
"""
FLOAT16_CUDA = Format(
    "float16@cuda", torch.float16, 11, -14, 15, 13, Emulation(computes_in_float32=True)
)
"""Half precision as a GPU computes it, emulated: float32 inside, one rounding an operation.

Example:
    >>> from fperr import formats
    >>> formats.FLOAT16_CUDA.is_half
    True
"""
BFLOAT16_CUDA = Format(
    "bfloat16@cuda", torch.bfloat16, 8, -126, 127, 63, Emulation(computes_in_float32=True)
)
"""Brain floating point as a GPU computes it, emulated.

Example:
    >>> from fperr import formats
    >>> formats.BFLOAT16_CUDA.emulation.computes_in_float32
    True
"""

EMULATED = (FLOAT32_CUDA, TF32_CUDA, FLOAT16_CUDA, BFLOAT16_CUDA)
"""The formats whose kernels are a GPU's, emulated.

Example:
    >>> from fperr import formats
    >>> [format.name for format in formats.EMULATED]
    ['float32@cuda', 'tf32@cuda', 'float16@cuda', 'bfloat16@cuda']
"""
FORMATS = {f.name: f for f in (FLOAT16, BFLOAT16, TF32, FLOAT32, FLOAT64, *EMULATED)}
"""The formats by name.

Example:
    >>> from fperr import formats
    >>> list(formats.FORMATS)[:5]
    ['float16', 'bfloat16', 'tf32', 'float32', 'float64']
"""


def format_named(name: str) -> Format:
    """The format called `name`.

    Args:
        name: Name of a format: `"float16"`, `"bfloat16"`, `"tf32"`, `"float32"` or `"float64"`, or
            one whose GPU kernels are emulated, e.g. `"float32@cuda"`.

    Raises:
        ValueError: No format has that name.

    Example:
        >>> from fperr import formats
        >>> formats.format_named("bfloat16").precision
        8
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}: expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def of_dtype(dtype: torch.dtype) -> Format:
    """The format that stores `dtype`, e.g. `FLOAT32` for `torch.float32` (never TF32).

    Raises:
        ValueError: `dtype` is not float16, bfloat16, float32 or float64.

    Example:
        >>> import torch
        >>> from fperr import formats
        >>> formats.of_dtype(torch.float32).name
        'float32'
    """
    for candidate in (FLOAT16, BFLOAT16, FLOAT32, FLOAT64):
        if candidate.dtype == dtype:
            return candidate
    raise ValueError(
        f"a floating-point dtype is needed (float16, bfloat16, float32 or float64), got {dtype}"
    )
