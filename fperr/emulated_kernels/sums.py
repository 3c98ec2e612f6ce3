"""Sums of products in an order and with roundings that are given, as a tensor core adds.

Operands are float32; a block of products is added exactly, up to float64's roundings, and each
partial sum keeps some of its bits.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fperr.emulated_kernels.operands import rounded_to_bits
from fperr.formats import Emulation

_aten = torch.ops.aten
TENSOR_CORE = Emulation(accumulation_rounding="truncated", terms_at_once=1)  # at worst
_MATRICES = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}


def accumulation_bound(emulation: Emulation, terms: int) -> float:
    """An upper bound on the error of a sum of products, relative to the sum of their magnitudes.

    With u = 2**-bits, twice that where partial sums are truncated, and m roundings it is
    (1 + u)**m - 1 (Higham, Accuracy and Stability, lemma 3.1). Without blocks, the device adds in
    an order of its own: m is the number of additions. With them, float64's roundings are added.

    Args:
        emulation: How the products are summed.
        terms: Number of products in the sum.

    Example:
        >>> from fperr.formats import Emulation
        >>> nearest = accumulation_bound(Emulation(), 257)
        >>> truncated = accumulation_bound(
        ...     Emulation(accumulation_rounding="truncated", terms_at_once=1), 256
        ... )
        >>> round(truncated / nearest, 2)
        2.0
    """
    is_truncated = emulation.accumulation_rounding == "truncated"
    u = 2.0 ** (is_truncated - emulation.accumulation_bits)
    if emulation.terms_at_once is None:
        return math.expm1((terms - 1) * math.log1p(u))
    blocks = -(-terms // emulation.terms_at_once)
    return math.expm1(blocks * math.log1p(u) + terms * math.log1p(2.0**-53))


def number_of_terms(name: str, args: tuple[Any, ...]) -> int:
    """The number of products in a sum of an operation, 0 for those that sum none.

    Of a convolution's weight gradient, which attacks do not need, it is not counted.
    """
    if name in _MATRICES:
        return int(args[_MATRICES[name][0]].shape[-1])
    if name in ("convolution", "convolution_backward"):
        is_backward = name == "convolution_backward"
        weight = args[2 if is_backward else 1]
        is_transposed, groups = (args[7], args[9]) if is_backward else (args[6], args[8])
        along_first = is_transposed != is_backward
        others = weight.shape[1] if along_first else weight.shape[0] // groups
        total: int = weight.numel() // groups // max(others, 1)
        return total
    return 0


def summed(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], emulation: Emulation
) -> Any | None:
    """The result of a product whose sums are emulated; None for operations that are none.

    Gradients of a convolution's weight are no sums of that kind: the device's own are taken.
    """
    name = function.overloadpacket.__name__
    if name in _MATRICES:
        a, b = (args[position] for position in _MATRICES[name])
        product = _matrix_product(a, b, emulation)
        if len(args) == len(_MATRICES[name]):
            return product
        return kwargs.get("alpha", 1) * product + kwargs.get("beta", 1) * args[0]
    if name == "convolution":
        return _convolution(args, emulation)
    if name == "convolution_backward":
        return _convolution_backward(function, args, emulation)
    return None


def _total(parts: Iterator[Tensor], emulation: Emulation) -> Tensor:
    """The sum of float64 parts, each partial sum rounded; in float32."""
    total = torch.zeros((), dtype=torch.float64)
    for part in parts:
        total = rounded_to_bits(
            total.to(part.device) + part,
            emulation.accumulation_bits,
            emulation.accumulation_rounding,
        )
    return total.float()


def _matrix_product(a: Tensor, b: Tensor, emulation: Emulation) -> Tensor:
    assert emulation.terms_at_once is not None
    size = emulation.terms_at_once
    pairs = zip(torch.split(a.double(), size, -1), torch.split(b.double(), size, -2), strict=True)
    return _total((left @ right for left, right in pairs), emulation)


def _convolution(args: tuple[Any, ...], emulation: Emulation) -> Tensor:
    x, weight, bias, *settings = args
    is_transposed, groups = settings[3], settings[5]

    def part(some: Tensor) -> Tensor:
        result: Tensor = _aten.convolution.default(x.double(), some, None, *settings)
        return result

    result = _by_blocks(part, weight, groups, emulation, along_first=is_transposed)
    return result if bias is None else result + bias.reshape(-1, *[1] * (weight.ndim - 2))


def _convolution_backward(function: Any, args: tuple[Any, ...], emulation: Emulation) -> Any:
    g, x, weight, bias_sizes, *settings, outputs = args
    is_transposed, groups = settings[3], settings[5]

    def part(some: Tensor) -> Tensor:
        mask = [True, False, False]
        wide = function(g.double(), x.double(), some, bias_sizes, *settings, mask)
        result: Tensor = wide[0]
        return result

    others = function(g, x, weight, bias_sizes, *settings, [False, *outputs[1:]])
    if not outputs[0]:
        return others
    gradient = _by_blocks(part, weight, groups, emulation, along_first=not is_transposed)
    return gradient, others[1], others[2]


def _by_blocks(
    part: Callable[[Tensor], Tensor],
    weight: Tensor,
    groups: int,
    emulation: Emulation,
    *,
    along_first: bool,
) -> Tensor:
    """The sum of what blocks of a weight contribute.

    Args:
        part: What the weight (float64) contributes, with zeros in place of the other blocks.
        weight: Weight (channels, channels of a group, *kernel).
        groups: Number of groups, which are summed beside each other.
        emulation: How it is summed.
        along_first: Whether the first dimension is summed over, and not the second.
    """
    assert emulation.terms_at_once is not None
    size, wide = emulation.terms_at_once, weight.double()
    shape = list(weight.shape)
    shape[0] = weight.shape[0] // groups if along_first else 1
    if along_first:
        shape[1] = 1  # the dimension that is not summed over
    terms = torch.arange(math.prod(shape), device=weight.device).reshape(shape)
    if along_first:
        terms = terms.repeat(groups, *[1] * (weight.ndim - 1))
    starts = range(0, math.prod(shape), size)
    return _total(
        (part(wide * ((terms >= start) & (terms < start + size))) for start in starts), emulation
    )
