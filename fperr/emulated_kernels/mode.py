"""The mode below autograd in which kernels are emulated, and autocast above it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from fperr.emulated_kernels.autocast import autocast, no_autocast
from fperr.emulated_kernels.float8 import Float8Layers, float8_product
from fperr.emulated_kernels.halves import HALVES, in_float32
from fperr.emulated_kernels.operands import rounded_to_bits
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


@contextmanager
def emulated(
    fmt: Format | None, *, layers: Float8Layers = _NO_LAYERS, only_casts: bool = False
) -> Iterator[None]:
    """Run a block with the kernels that the format emulates, forward and backward, if any.

    A block inside another one has its own format's kernels alone.

    Args:
        fmt: The format; None: the device's own kernels.
        layers: Layers of the network that run in float8, if the format has such.
        only_casts: Whether to emulate no kernel, only what autocast casts. Graphs are captured so:
            casts are operations of the network, and kernels are none.
    """
    emulation = None if fmt is None else fmt.emulation
    is_autocast = emulation is not None and emulation.is_autocast
    casts = autocast(fmt.dtype) if fmt is not None and is_autocast else no_autocast()
    with casts, _kernels_of(None if only_casts or emulation is None else fmt, layers):
        yield


def emulated_format() -> Format | None:
    """The format whose kernels this thread emulates, or None."""
    mode = _present_mode()
    return None if mode is None else mode.format


@contextmanager
def _kernels_of(fmt: Format | None, layers: Float8Layers) -> Iterator[None]:
    """Make the mode that there is emulate a format, or enter one."""
    mode = _present_mode()
    if mode is None:
        with nullcontext() if fmt is None else _EmulatedKernels(fmt, layers):
            yield
        return
    before = mode.format, mode.layers
    mode.format, mode.layers = fmt, layers
    try:
        yield
    finally:
        mode.format, mode.layers = before


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

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        emulation = None if self.format is None else self.format.emulation
        if emulation is None:
            return function(*args, **options)
        if function is torch.ops.aten.sqrt.default and args[0].dtype in (*HALVES, torch.float32):
            return _square_root(args[0])
        if self.layers.weights:
            product = float8_product(function.overloadpacket.__name__, args, self.layers.weights)
            if product is not None:
                return product
        if emulation.computes_in_float32:
            return in_float32(function, args, options)
        bits, operands = _operands(emulation, function.overloadpacket.__name__)
        if bits is None:
            return function(*args, **options)

        def cut(position: int, value: Any) -> Any:
            is_operand = position in operands and isinstance(value, Tensor)
            if not is_operand or value.dtype != torch.float32:
                return value
            return rounded_to_bits(value, bits, emulation.operand_rounding)

        return function(*(cut(i, value) for i, value in enumerate(args)), **options)


def _operands(emulation: Emulation, name: str) -> tuple[int | None, tuple[int, ...]]:
    """The bits that the operands of an operation keep, and their positions."""
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
