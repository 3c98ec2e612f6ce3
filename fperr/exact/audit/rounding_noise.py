"""The rounding error of float64 at one operation, for the estimate of its error in a network.

This is Monte Carlo arithmetic (Parker 1997), an operation at a time: in a copy of the run, x, v and
the result of every operation are changed at random by about a unit roundoff. That stands for the
rounding inside the next kernel, too, if its result is the exact one at arguments that are off by a
few roundings, as for sums and products. The few kernels with larger errors inside, which no change
of their arguments shows, are listed with the size of these errors.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

UNIT_ROUNDOFF = 2.0**-53
_SMALLEST_NORMAL = 2.0**-1022
_TINY = 2.0**-500  # products of numbers above it are normal
Arguments = Sequence[object]  # tensors, numbers, lists of them


def noise_size(operation: str, arguments: Arguments, result: Tensor) -> Tensor:
    """The size of the random change of a result, in units roundoff; broadcasts to it.

    Args:
        operation: Name of the operation, e.g. `"aten.mul.Tensor"`.
        arguments: Arguments of the call: tensors, numbers, lists.
        result: Result in float64.
    """
    lost = _LOST_INSIDE.get(operation)
    size = result.abs() if lost is None else lost(arguments, result)
    # below the smallest normal number an absolute error takes the place of the relative one; a
    # zero that was nearly one counts, and a zero that zeros make does not
    underflows = (result.abs() < _SMALLEST_NORMAL) & _can_underflow(operation, arguments, result)
    return torch.where(underflows, size.clamp(min=_SMALLEST_NORMAL), size)


def moves_numbers(operation: str) -> bool:
    """Whether the operation rounds nothing: it moves, selects or negates numbers."""
    return operation in _WITHOUT_ROUNDING


def _can_underflow(operation: str, arguments: Arguments, result: Tensor) -> Tensor:
    """Where the result may have underflowed: at nonzero arguments, or in sums with tiny terms."""
    tensors = [a for a in arguments if isinstance(a, Tensor) and a.is_floating_point()]
    if operation in _BY_ENTRY:
        nonzero = torch.ones_like(result, dtype=torch.bool)
        for argument in tensors[:2]:
            nonzero = nonzero & (argument != 0)
        return nonzero
    tiny = torch.zeros((), dtype=torch.bool, device=result.device)
    for argument in tensors:
        tiny = tiny | ((argument != 0) & (argument.abs() < _TINY)).any()
    return tiny


def _first(arguments: Arguments, result: Tensor) -> Tensor:
    """An error of u |a|: `gelu` forms 1 + erf(a/sqrt 2), which cancels for negative a."""
    del result
    return _tensor(arguments[0]).abs()


def _gradient_and_argument(arguments: Arguments, result: Tensor) -> Tensor:
    """An error of u |g| (1 + |a|): a derivative is formed as a sum of terms up to 1 + |a|."""
    gradient, argument = map(_tensor, arguments[:2])
    return torch.maximum(gradient.abs() * (1 + argument.abs()), result.abs())


def _log_softmax(arguments: Arguments, result: Tensor) -> Tensor:
    """An error of u (|a - max a| + 1 + log K): the logarithm of a sum is subtracted."""
    a, dim = _tensor(arguments[0]), arguments[1]
    assert isinstance(dim, int)
    span = (a - a.amax(dim, keepdim=True)).abs().nan_to_num(0.0, 0.0, 0.0)
    return torch.maximum(span + 1 + torch.tensor(float(a.shape[dim])).log(), result.abs())


def _in_float32(arguments: Arguments, result: Tensor) -> Tensor:
    """PyTorch's hardsigmoid has its sixth in float32, in float64 too."""
    del arguments
    return result.abs() * 2.0**29


def _normalised(arguments: Arguments, result: Tensor) -> Tensor:
    """An error of u (|y| + |bias - mean * factor|): the kernel folds mean and bias beforehand."""
    x, weight, bias, mean, variance = arguments[:5]
    if variance is None:  # those of x itself
        numbers = _tensor(x)
        over = [0, *range(2, numbers.ndim)]
        mean, variance = numbers.mean(over), numbers.var(over, correction=0)
    eps = arguments[-1]
    assert isinstance(eps, float | int)
    factor = (_tensor(variance) + eps).rsqrt() * (1.0 if weight is None else _tensor(weight))
    shift = (_tensor(mean) * factor).abs() + (0.0 if bias is None else _tensor(bias).abs())
    # a channel's shift for results (rows, channels, *size)
    return result.abs() + shift.reshape(-1, *[1] * (result.ndim - 2))


def _tensor(argument: object) -> Tensor:
    assert isinstance(argument, Tensor)
    return argument


_LOST_INSIDE: dict[str, Callable[[Arguments, Tensor], Tensor]] = {
    "aten.gelu.default": _first,
    "aten.gelu_backward.default": _gradient_and_argument,
    "aten.silu_backward.default": _gradient_and_argument,
    "aten.hardswish_backward.default": _gradient_and_argument,
    "aten.elu_backward.default": lambda arguments, result: torch.maximum(
        _tensor(arguments[0]).abs(), result.abs()
    ),
    "aten._log_softmax.default": _log_softmax,
    "aten.hardsigmoid_backward.default": _in_float32,
    "aten.native_batch_norm.default": _normalised,
    "aten._native_batch_norm_legit_no_training.default": _normalised,
    "aten.cudnn_batch_norm.default": _normalised,
}

# operations whose result at an entry depends on the first two arguments there, or on the first
_BY_ENTRY = {
    f"aten.{name}"
    for name in (
        "mul.Tensor",
        "mul.Scalar",
        "div.Tensor",
        "div.Scalar",
        "exp.default",
        "tanh.default",
        "tanh_backward.default",
        "sigmoid.default",
        "sigmoid_backward.default",
        "silu.default",
        "silu_backward.default",
        "gelu.default",
        "gelu_backward.default",
        "elu.default",
        "softplus.default",
        "softplus_backward.default",
        "hardswish.default",
        "hardswish_backward.default",
        "_softmax.default",
        "_softmax_backward_data.default",
        "pow.Tensor_Scalar",
        "reciprocal.default",
        "rsqrt.default",
        "erf.default",
    )
}

# fmt: off
_WITHOUT_ROUNDING = {f"aten.{name}" for name in (
    "_to_copy.default", "_unsafe_view.default", "abs.default", "alias.default", "amax.default",
    "amin.default", "aminmax.default", "cat.default", "clamp.default", "clamp_min.default",
    "clone.default", "constant_pad_nd.default", "contiguous.default", "detach.default",
    "expand.default",
    "flip.default", "gather.default", "hardtanh.default", "index.Tensor",
    "lift_fresh_copy.default", "masked_fill.Scalar", "max.dim", "min.dim",
    "max_pool2d_with_indices.default", "max_pool3d_with_indices.default",
    "adaptive_max_pool2d.default", "maximum.default",
    "minimum.default", "fmax.default", "fmin.default", "max.default", "min.default",
    "nan_to_num.default", "neg.default", "permute.default", "pixel_shuffle.default",
    "pixel_unshuffle.default", "relu.default", "repeat.default", "reshape.default",
    "roll.default", "scatter.src", "scatter.value", "select.int", "select_backward.default",
    "sgn.default", "sign.default", "slice.Tensor", "slice_backward.default", "split.Tensor",
    "split_with_sizes.default", "squeeze.dim", "squeeze.dims", "stack.default", "t.default",
    "threshold_backward.default", "transpose.int", "tril.default", "unbind.int",
    "unsqueeze.default", "view.default", "where.self",
    "copy.default", "fill.Tensor", "slice_scatter.default", "select_scatter.default",
    "diagonal_scatter.default",
    "as_strided.default", "as_strided_scatter.default", "index_select.default",
    "embedding.default", "triu.default", "diagonal.default", "diagonal_backward.default",
    "diag_embed.default", "rot90.default", "channel_shuffle.default", "unfold.default",
    "squeeze.default", "unsafe_split.Tensor", "unsafe_split_with_sizes.default",
    "reflection_pad1d.default", "reflection_pad2d.default", "reflection_pad3d.default",
    "replication_pad1d.default", "replication_pad2d.default", "replication_pad3d.default",
    "im2col.default", "upsample_nearest1d.default", "upsample_nearest2d.default",
    "upsample_nearest3d.default", "_upsample_nearest_exact1d.default",
    "_upsample_nearest_exact2d.default", "_upsample_nearest_exact3d.default",
    "hardshrink.default", "softshrink_backward.default", "hardshrink_backward.default",
    "topk.default", "sort.default", "sort.stable", "kthvalue.default", "median.dim",
    "floor.default", "ceil.default", "trunc.default", "round.default",
    "threshold.default", "clamp.Tensor", "clamp_min.Tensor", "clamp_max.Tensor",
)}
# fmt: on
