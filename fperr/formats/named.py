"""The formats that have names."""

import math

import torch

from fperr.formats.record import Emulation, Format

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

_AUTOCAST = Emulation(computes_in_float32=True, is_autocast=True)
FLOAT16_AUTOCAST = Format("autocast-float16@cuda", torch.float16, 11, -14, 15, 13, _AUTOCAST)
"""Autocast to float16 as on CUDA, emulated: weights and input float32, operations by its lists.

Example:
    >>> from fperr import formats
    >>> formats.FLOAT16_AUTOCAST.network_dtype
    torch.float32
"""
BFLOAT16_AUTOCAST = Format("autocast-bfloat16@cuda", torch.bfloat16, 8, -126, 127, 63, _AUTOCAST)
"""Autocast to bfloat16 as on CUDA, emulated.

Example:
    >>> from fperr import formats
    >>> formats.BFLOAT16_AUTOCAST.emulation.is_autocast
    True
"""

_E4M3_PRECISION = 1 - round(math.log2(torch.finfo(torch.float8_e4m3fn).eps))
FLOAT8_TENSORWISE = Format(
    "float8@tensorwise", torch.bfloat16, _E4M3_PRECISION, -126, 127, 63,
    Emulation(computes_in_float32=True, has_float8_layers=True),
)  # fmt: skip
"""Linear layers in float8 with a scale a tensor, emulated; everything else in bfloat16.

Example:
    >>> from fperr import formats
    >>> formats.FLOAT8_TENSORWISE.unit_roundoff  # of e4m3, in which forward operands are
    0.0625
"""

EMULATED = (
    FLOAT32_CUDA, TF32_CUDA, FLOAT16_CUDA, BFLOAT16_CUDA, FLOAT16_AUTOCAST, BFLOAT16_AUTOCAST,
    FLOAT8_TENSORWISE,
)  # fmt: skip
"""The formats whose kernels are a GPU's, emulated.

Example:
    >>> from fperr import formats
    >>> [format.name for format in formats.EMULATED][:4]
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
