"""Kernels of a GPU emulated on any device: operands cut to fewer bits, halves wide inside.

What is claimed, operation by operation, is on the page docs/how_to/gpu_arithmetic.md.
"""

from fperr.emulated_kernels.autocast import autocast_dtype
from fperr.emulated_kernels.float8 import Float8Layers, float8_layers
from fperr.emulated_kernels.mode import Met, emulated, emulated_format
from fperr.emulated_kernels.operands import rounded_to_bits
from fperr.emulated_kernels.sums import TENSOR_CORE, accumulation_bound

__all__ = [
    "TENSOR_CORE",
    "Float8Layers",
    "Met",
    "accumulation_bound",
    "autocast_dtype",
    "emulated",
    "emulated_format",
    "float8_layers",
    "rounded_to_bits",
]
