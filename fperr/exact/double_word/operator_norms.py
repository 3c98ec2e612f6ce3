"""Upper bounds on what matrices and convolutions do to the Euclidean norm of their input."""

import math

import torch
from torch import Tensor

_SQUARINGS = 4
# Every entry of a product of float64 matrices is off by less than (terms + 1) 2^-53 times the sum
# of the magnitudes; for Gram matrices and their powers up to 2^12 entries a side, in the Frobenius
# norm, that is below 2^-20 of the trace's bound after four squarings.
_ROUNDING = 1 + 2.0**-16


def spectral_norm(matrix: Tensor) -> float:
    """At least the largest singular value of a float64 matrix (m, n).

    The largest eigenvalue of the Gram matrix G is at most |G^16|_F^(1/16).
    """
    scale = float(matrix.abs().max()) if matrix.numel() else 0.0
    if scale == 0:
        return 0.0
    short = matrix / scale if matrix.shape[0] <= matrix.shape[1] else matrix.T / scale
    power = short @ short.T
    exponent, log2_norm = 1, 0.0
    for _ in range(_SQUARINGS):
        norm = float(torch.linalg.matrix_norm(power))
        log2_norm = 2 * (log2_norm + math.log2(norm))
        power = power / norm
        power = power @ power
        exponent *= 2
    log2_norm += math.log2(float(torch.linalg.matrix_norm(power)))
    return float(2.0 ** (log2_norm / (2 * exponent)) * scale * _ROUNDING)


def frobenius_norm(matrix: Tensor) -> float:
    """At least the Frobenius norm: a cheaper bound."""
    return float(torch.linalg.vector_norm(matrix)) * _ROUNDING


def overlap(kernel: list[int], stride: list[int], dilation: list[int]) -> float:
    """The square root of how many windows see one entry of the input, at most."""
    count = 1
    for taps, step, spacing in zip(kernel, stride, dilation, strict=True):
        count *= -(-taps // (step // math.gcd(step, spacing)))
    return math.sqrt(count)


def convolution_norm(
    weight: Tensor, stride: list[int], dilation: list[int], groups: int, *, tight: bool
) -> float:
    """At least the norm of a convolution, and of its transpose, as a map of the whole input.

    The map is a product of the weight, as a matrix of patches, with the gathering of patches,
    which repeats each entry at most `overlap`^2 times; or, transposed, the other way round.

    Args:
        weight: (out, in / groups, *kernel), float64.
        stride: one for each spatial dimension.
        dilation: the same.
        groups: of channels; the norm is that of the largest group.
        tight: by singular values instead of Frobenius norms.
    """
    out, width, *kernel = weight.shape
    norm = spectral_norm if tight else frobenius_norm
    found = 0.0
    for part in weight.reshape(groups, out // groups, width, -1):
        by_patches = norm(part.reshape(out // groups, -1)) * overlap(kernel, stride, dilation)
        bound = by_patches
        if tight:
            taps = math.sqrt(math.prod(kernel))
            by_taps = norm(part.transpose(0, 1).reshape(width, -1)) * taps
            bound = min(by_patches, by_taps)
        found = max(found, bound)
    return found * _ROUNDING
