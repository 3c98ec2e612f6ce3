"""Kernels of a GPU emulated on any device: operands cut to fewer bits, halves wide inside.

What is claimed, operation by operation, is on the page docs/how_to/gpu_arithmetic.md.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from fperr.formats import Emulation, Format, OperandRounding

_FRACTION_BITS = 23  # of float32
_HALVES = (torch.float16, torch.bfloat16)
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


def rounded_to_bits(numbers: Tensor, bits: int, rounding: OperandRounding) -> Tensor:
    """Float32 numbers with fewer significand bits, as a tensor core takes its operands.

    Args:
        numbers: Float32 numbers; NaN and infinities stay.
        bits: Significand bits that are kept, the implicit bit included; 11 for TF32.
        rounding: `"nearest_away"` (ties away from zero), `"nearest_even"` or `"truncated"`.

    Returns:
        Float32 numbers of the same shape. What rounds beyond the largest is infinite.

    Example:
        >>> import torch
        >>> third = torch.tensor([1 / 3])
        >>> bool(rounded_to_bits(third, 11, "nearest_away") == 1365 / 4096)
        True
    """
    dropped = _FRACTION_BITS + 1 - bits
    pattern = numbers.contiguous().view(torch.int32)
    step = 1 << dropped
    if rounding == "nearest_away":
        pattern = pattern + step // 2
    elif rounding == "nearest_even":
        pattern = pattern + (step // 2 - 1) + ((pattern >> dropped) & 1)
    kept = (pattern & ~(step - 1)).view(torch.float32)
    return torch.where(numbers.isfinite(), kept, numbers)


@contextmanager
def emulated(fmt: Format) -> Iterator[None]:
    """Run a block with the kernels that the format emulates, forward and backward, if any."""
    mode: AbstractContextManager[object] = nullcontext()
    active = _get_current_dispatch_mode()
    is_active = isinstance(active, _EmulatedKernels) and active.emulation == fmt.emulation
    if fmt.emulation is not None and not is_active:
        mode = _EmulatedKernels(fmt.emulation)
    with mode:
        yield


class _EmulatedKernels(TorchDispatchMode):
    """Below autograd, so that what backward passes call is emulated, too."""

    is_of_fperr = True  # no caller's mode that would change what fperr computes

    def __init__(self, emulation: Emulation) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.emulation = emulation

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if function is torch.ops.aten.sqrt.default and args[0].dtype in (*_HALVES, torch.float32):
            return _square_root(args[0])
        if self.emulation.computes_in_float32:
            return _in_float32(function, args, options)
        bits, operands = self._operands(function.overloadpacket.__name__)
        if bits is None:
            return function(*args, **options)

        def cut(position: int, value: Any) -> Any:
            is_operand = position in operands and isinstance(value, Tensor)
            if not is_operand or value.dtype != torch.float32:
                return value
            return rounded_to_bits(value, bits, self.emulation.operand_rounding)

        return function(*(cut(i, value) for i, value in enumerate(args)), **options)

    def _operands(self, name: str) -> tuple[int | None, tuple[int, ...]]:
        """The bits that the operands of an operation keep, and their positions."""
        if name in _CONVOLUTIONS:
            return self.emulation.convolution_bits, _CONVOLUTIONS[name]
        if name in _MATRIX_PRODUCTS:
            return self.emulation.matrix_product_bits, _MATRIX_PRODUCTS[name]
        return None, ()


def _square_root(numbers: Tensor) -> Tensor:
    """Correctly rounded in float32, as CUDA's; the CPU's vectorised kernel is not always.

    Rounding float64's to float32 is the same as rounding once, as 53 >= 2 * 24 + 2.
    """
    return numbers.double().sqrt().float().to(numbers.dtype)


def _in_float32(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on half numbers in float32, its results rounded once.

    Views, copies and casts move numbers, and operations in place are the CPU's own, which compute
    elementwise in float32 as well.
    """
    tensors = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
    halves = {t.dtype for t in tensors if t.dtype in _HALVES}
    schema = function._schema
    moves = "copy" in function.overloadpacket.__name__ or any(r.alias_info for r in schema.returns)
    if len(halves) != 1 or schema.is_mutable or moves:
        return function(*args, **kwargs)
    (half,) = halves
    widened = _mapped(half, torch.float32)
    narrowed = _mapped(torch.float32, half)
    result = function(*pytree.tree_map(widened, args), **pytree.tree_map(widened, kwargs))
    return pytree.tree_map(narrowed, result)


def _mapped(source: torch.dtype, target: torch.dtype) -> Callable[[Any], Any]:
    """A function that casts tensors, and names of dtypes, from one dtype to the other."""

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(target) if value.dtype == source else value
        return target if value is source else value

    return cast
