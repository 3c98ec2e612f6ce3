"""The mode below autograd in which kernels are emulated, and autocast above it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from fperr.emulated_kernels.autocast import autocast, no_autocast
from fperr.emulated_kernels.claims import is_claimed
from fperr.emulated_kernels.float8 import Float8Layers, float8_product
from fperr.emulated_kernels.halves import HALVES, in_float32
from fperr.emulated_kernels.operands import rounded_to_bits
from fperr.emulated_kernels.sums import number_of_terms, summed
from fperr.errors import ModelError
from fperr.formats import Emulation, Format

_NO_LAYERS = Float8Layers()
# operation -> positions of the operands of its products
_CONVOLUTIONS = {
    "convolution": (0, 1), "convolution_overrideable": (0, 1), "convolution_backward": (0, 1, 2),
    "convolution_backward_overrideable": (0, 1, 2),
}  # fmt: skip
_MATRIX_PRODUCTS = {
    "mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2), "addbmm": (1, 2),
    "mv": (0, 1), "addmv": (1, 2), "dot": (0, 1), "vdot": (0, 1), "linear": (0, 1),
    "linear_backward": (0, 1, 2),
}  # fmt: skip


@dataclass(slots=True)
class Met:
    """What a block met.

    Attributes:
        unclaimed: Names of operations of which nothing is claimed.
        longest_sum: The largest number of products that were summed.
    """

    unclaimed: set[str] = field(default_factory=set)
    longest_sum: int = 0

    def add(self, other: "Met") -> None:
        """Add what another block met."""
        self.unclaimed |= other.unclaimed
        self.longest_sum = max(self.longest_sum, other.longest_sum)


@contextmanager
def emulated(
    fmt: Format | None, *, layers: Float8Layers = _NO_LAYERS, only_casts: bool = False
) -> Iterator[Met]:
    """Run a block with the kernels that the format emulates, forward and backward, if any.

    A block inside another one has its own format's kernels alone. Yields what the block meets.

    Args:
        fmt: The format; None: the device's own kernels.
        layers: Layers of the network that run in float8, if the format has such.
        only_casts: Whether to emulate no kernel, only what autocast casts. Graphs are captured so:
            casts are operations of the network, and kernels are none.
    """
    emulation = None if fmt is None else fmt.emulation
    is_autocast = emulation is not None and emulation.is_autocast
    casts = autocast(fmt.dtype) if fmt is not None and is_autocast else no_autocast()
    with casts, _kernels_of(None if only_casts or emulation is None else fmt, layers) as met:
        yield met


def emulated_format() -> Format | None:
    """The format whose kernels this thread emulates, or None."""
    mode = _present_mode()
    return None if mode is None else mode.format


@contextmanager
def _kernels_of(fmt: Format | None, layers: Float8Layers) -> Iterator[Met]:
    """Make the mode that there is emulate a format, or enter one."""
    mode = _present_mode()
    if mode is None and fmt is None:
        yield Met()
    elif mode is None and fmt is not None:
        with _EmulatedKernels(fmt, layers) as entered:
            yield entered.met
    elif mode is not None:
        before = mode.format, mode.layers, mode.met
        mode.format, mode.layers, mode.met = fmt, layers, Met()
        try:
            yield mode.met
        finally:
            mode.format, mode.layers, mode.met = before


def _present_mode() -> "_EmulatedKernels | None":
    modes = _get_current_dispatch_mode_stack()
    return next((m for m in modes if isinstance(m, _EmulatedKernels)), None)


class _EmulatedKernels(TorchDispatchMode):
    """Below autograd, so that what backward passes call is emulated, too."""

    is_of_fperr = True  # no caller's mode that would change what fperr computes

    def __init__(self, fmt: Format, layers: Float8Layers) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.format: Format | None = fmt
        self.layers = layers
        self.met = Met()
        self._claimed = set[Any]()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        emulation = None if self.format is None else self.format.emulation
        if emulation is None:
            return function(*args, **options)
        self._note(function, args, options)
        terms = number_of_terms(function.overloadpacket.__name__, args)
        self.met.longest_sum = max(self.met.longest_sum, terms)
        if function is torch.ops.aten.sqrt.default and args[0].dtype in (*HALVES, torch.float32):
            return _square_root(args[0])
        if self.layers.weights:
            product = float8_product(function.overloadpacket.__name__, args, self.layers.weights)
            if product is not None:
                return product
        run = partial(_float32_kernel, emulation)
        if emulation.computes_in_float32:
            return in_float32(function, args, options, run)
        return run(function, args, options)

    def _note(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the name of an operation of which nothing is claimed.

        Raises:
            ModelError: It is refused.
        """
        if function in self._claimed:
            return
        if is_claimed(function, args, kwargs):
            self._claimed.add(function)
            return
        name = str(function)
        assert self.format is not None
        assert self.format.emulation is not None
        if self.format.emulation.is_strict:
            raise ModelError(
                f"format {self.format.name!r} is strict, and nothing is claimed of {name} there: "
                "leave is_strict out, which lists such operations, or the operation"
            )
        self.met.unclaimed.add(name)


def _float32_kernel(
    emulation: Emulation, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """An operation on float32 numbers: operands of products lose bits, and so do their sums."""
    bits, operands = _operands(emulation, function.overloadpacket.__name__)
    factors = [args[i] for i in operands if i < len(args)]
    is_product = bool(factors) and all(t is None or t.dtype == torch.float32 for t in factors)
    if not is_product:
        return function(*args, **kwargs)
    if bits is not None:
        args = tuple(
            rounded_to_bits(value, bits, emulation.operand_rounding) if i in operands else value
            for i, value in enumerate(args)
        )
    result = None if emulation.terms_at_once is None else summed(function, args, kwargs, emulation)
    return function(*args, **kwargs) if result is None else result


def _operands(emulation: Emulation, name: str) -> tuple[int | None, tuple[int, ...]]:
    """The bits that the operands of a product keep (None: all), and their positions."""
    if name in _CONVOLUTIONS:
        return emulation.convolution_bits, _CONVOLUTIONS[name]
    if name in _MATRIX_PRODUCTS:
        return emulation.matrix_product_bits, _MATRIX_PRODUCTS[name]
    return None, ()


def _square_root(numbers: Tensor) -> Tensor:
    """Correctly rounded in float32, as CUDA's; the CPU's vectorised kernel is not always.

    Rounding float64's to float32 is the same as rounding once, as 53 >= 2 * 24 + 2.
    """
    return numbers.double().sqrt().float().to(numbers.dtype)
