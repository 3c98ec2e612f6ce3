"""Binary floating-point formats and their constants.

Example:
    >>> from fperr import formats
    >>> formats.FLOAT16.largest
    65504.0
"""

from fperr.formats.named import (
    BFLOAT16,
    BFLOAT16_AUTOCAST,
    BFLOAT16_CUDA,
    EMULATED,
    FLOAT8_TENSORWISE,
    FLOAT16,
    FLOAT16_AUTOCAST,
    FLOAT16_CUDA,
    FLOAT32,
    FLOAT32_CUDA,
    FLOAT64,
    FORMATS,
    TF32,
    TF32_CUDA,
    format_named,
    of_dtype,
)
from fperr.formats.record import Emulation, Format

__all__ = [
    "BFLOAT16",
    "BFLOAT16_AUTOCAST",
    "BFLOAT16_CUDA",
    "EMULATED",
    "FLOAT8_TENSORWISE",
    "FLOAT16",
    "FLOAT16_AUTOCAST",
    "FLOAT16_CUDA",
    "FLOAT32",
    "FLOAT32_CUDA",
    "FLOAT64",
    "FORMATS",
    "TF32",
    "TF32_CUDA",
    "Emulation",
    "Format",
    "format_named",
    "of_dtype",
]
