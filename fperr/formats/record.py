"""The records: a floating-point format, and the kernels of an accelerator that are emulated."""

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
        is_autocast: Whether weights and input stay float32, and each operation casts its operands
            as PyTorch's autocast on CUDA does.
        has_float8_layers: Whether linear layers multiply in float8, with a scale a tensor.

    Example:
        >>> from fperr import formats
        >>> formats.FLOAT32_CUDA.emulation.convolution_bits
        11
    """

    convolution_bits: int | None = None
    matrix_product_bits: int | None = None
    operand_rounding: OperandRounding = "nearest_away"
    computes_in_float32: bool = False
    is_autocast: bool = False
    has_float8_layers: bool = False


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format: rounding to nearest, ties to even, gradual underflow.

    Attributes:
        name: Name in tables and on the command line, e.g. `"bfloat16"`.
        dtype: Dtype of torch that stores the format's numbers; under autocast, those of the
            operations that it casts.
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
    def network_dtype(self) -> torch.dtype:
        """The dtype of weights and input: `dtype`, and float32 under autocast."""
        is_autocast = self.emulation is not None and self.emulation.is_autocast
        return torch.float32 if is_autocast else self.dtype

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
