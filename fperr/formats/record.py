"""The records: a floating-point format, and the kernels of an accelerator that are emulated."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

Rounding = Literal["nearest_away", "nearest_even", "truncated"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLOAT32_BITS = 24


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
        accumulation_bits: Significand bits that partial sums of products keep.
        accumulation_rounding: How partial sums lose the others.
        terms_at_once: How many products are added, exactly, before a partial sum loses bits; None:
            the device's own sums, in an order of its own. Much slower than those: each block is a
            product of its own, in float64.
        is_strict: Whether operations are refused for which nothing is claimed.

    Raises:
        ValueError: The fields contradict each other, or name what does not exist.

    Example:
        >>> from fperr import formats
        >>> formats.FLOAT32_CUDA.emulation.convolution_bits
        11
    """

    convolution_bits: int | None = None
    matrix_product_bits: int | None = None
    operand_rounding: Rounding = "nearest_away"
    computes_in_float32: bool = False
    is_autocast: bool = False
    has_float8_layers: bool = False
    accumulation_bits: int = _FLOAT32_BITS
    accumulation_rounding: Rounding = "nearest_even"
    terms_at_once: int | None = None
    is_strict: bool = False

    def __post_init__(self) -> None:
        _check_bits("convolution_bits", self.convolution_bits)
        _check_bits("matrix_product_bits", self.matrix_product_bits)
        _check_bits("accumulation_bits", self.accumulation_bits)
        for name in ("operand_rounding", "accumulation_rounding"):
            if getattr(self, name) not in ROUNDINGS:
                raise ValueError(
                    f"{name} must be one of {', '.join(ROUNDINGS)}, got {getattr(self, name)!r}: "
                    "name one of them"
                )
        size = self.terms_at_once
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ValueError(
                f"terms_at_once must be a number of terms from 1 on, got {size!r}: give one, or "
                "None for the device's own sums"
            )
        own = self.accumulation_bits, self.accumulation_rounding
        if size is None and own != (_FLOAT32_BITS, "nearest_even"):
            raise ValueError(
                f"the device's own sums keep {_FLOAT32_BITS} bits, rounded to nearest, got "
                f"accumulation_bits={own[0]} and accumulation_rounding={own[1]!r}: give "
                "terms_at_once, the number of products that are added before a rounding"
            )
        if self.has_float8_layers and self.is_autocast:
            raise ValueError(
                "has_float8_layers needs weights in bfloat16, which is_autocast keeps in float32: "
                "leave one of them out"
            )


def _check_bits(name: str, bits: int | None) -> None:
    if bits is not None and not (isinstance(bits, int) and 1 <= bits <= _FLOAT32_BITS):
        raise ValueError(
            f"{name} must be 1 to {_FLOAT32_BITS} significand bits, the implicit one included, got "
            f"{bits!r}: give as many, or leave it out"
        )


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

    Raises:
        ValueError: The fields contradict each other.

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

    def __post_init__(self) -> None:
        if not self.name or "," in self.name:
            raise ValueError(
                f"a format's name must be a text without commas, got {self.name!r}: give another"
            )
        if self.dtype not in _DTYPES:
            raise ValueError(
                f"format {self.name!r} must be stored in float16, bfloat16, float32 or float64, "
                f"got {self.dtype}: name one of them as its dtype"
            )
        own = round(1 - math.log2(torch.finfo(self.dtype).eps))
        if not 1 <= self.precision <= own:
            raise ValueError(
                f"format {self.name!r} must have 1 to {own} significand bits in {self.dtype}, got "
                f"{self.precision}: give fewer, or a wider dtype"
            )
        emulation = self.emulation or Emulation()
        if self.is_half and (emulation.convolution_bits or emulation.matrix_product_bits):
            raise ValueError(
                f"convolution_bits and matrix_product_bits of format {self.name!r} cut operands in "
                f"float32, got {self.dtype}: leave them out, or store float32"
            )
        needs_half = {
            "computes_in_float32": emulation.computes_in_float32,
            "is_autocast": emulation.is_autocast,
            "has_float8_layers": emulation.has_float8_layers,
        }
        named = [name for name, is_set in needs_half.items() if is_set]
        if named and not self.is_half:
            raise ValueError(
                f"{' and '.join(named)} of format {self.name!r} need numbers in a half format, got "
                f"{self.dtype}: store float16 or bfloat16, or leave them out"
            )

    def __str__(self) -> str:
        return self.name

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
