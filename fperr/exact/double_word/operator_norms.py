"""Upper bounds on the operator norms of matrices and convolutions, for Euclidean norms."""

import math

import torch
from torch import Tensor

# Squarings of a Gram matrix cost n^3 each and tighten a bound of n^2: four for matrices up to 512 a
# side, one up to 1,024. Beyond, the bound of n^2 is as much as a first gradient is worth: on a
# random matrix of 2,048 it is 18 times too large, which costs 4 of 106 bits for a layer.
_SQUARINGS = ((512, 4), (1024, 1))
# Every entry of a product of float64 matrices is off by less than (terms + 1) 2^-53 times the sum
# of the magnitudes; for Gram matrices and their powers up to 2^12 entries a side, in the Frobenius
# norm, that is below 2^-20 of the trace's bound after four squarings.
_ROUNDING = 1 + 2.0**-16


def spectral_norm(matrix: Tensor) -> float:
    """An upper bound on the largest singular value of a float64 matrix (m, n).

    The least of the Frobenius norm; of the root of the product of the largest sums of magnitudes of
    a row and of a column (Schur's test); and, for matrices that are not large, of
    |G^k|_F^(1/2k), with G the Gram matrix and k a power of two.
    """
    scale = float(matrix.abs().max()) if matrix.numel() else 0.0
    if scale == 0:
        return 0.0
    short = matrix / scale if matrix.shape[0] <= matrix.shape[1] else matrix.T / scale
    sizes = short.abs()
    bound = min(
        float(torch.linalg.vector_norm(short)),
        math.sqrt(float(sizes.sum(0).max()) * float(sizes.sum(1).max())),
    )
    squarings = next((count for side, count in _SQUARINGS if len(short) <= side), None)
    if squarings is not None:
        bound = min(bound, _norm_by_powers(short, squarings))
    return bound * scale * _ROUNDING


def _norm_by_powers(short: Tensor, squarings: int) -> float:
    """|G^k|_F^(1/2k), of the Gram matrix G of a matrix (m, n), m <= n; k = 2^squarings."""
    power = short @ short.T
    exponent, log2_norm = 1, 0.0
    for _ in range(squarings):
        norm = float(torch.linalg.matrix_norm(power))
        log2_norm = 2 * (log2_norm + math.log2(norm))
        power = power / norm
        power = power @ power
        exponent *= 2
    log2_norm += math.log2(float(torch.linalg.matrix_norm(power)))
    return float(2.0 ** (log2_norm / (2 * exponent)))


def frobenius_norm(matrix: Tensor) -> float:
    """An upper bound on the Frobenius norm: cheaper than `spectral_norm`, less tight."""
    return float(torch.linalg.vector_norm(matrix)) * _ROUNDING


def overlap(kernel: list[int], stride: list[int], dilation: list[int]) -> float:
    """The square root of an upper bound on the number of windows that contain an input entry."""
    count = 1
    for taps, step, spacing in zip(kernel, stride, dilation, strict=True):
        count *= -(-taps // (step // math.gcd(step, spacing)))
    return math.sqrt(count)


def convolution_norm(
    weight: Tensor, stride: list[int], dilation: list[int], groups: int, *, tight: bool
) -> float:
    """An upper bound on the operator norm of a convolution, and of its transpose.

    The convolution gathers patches, which repeats each entry at most `overlap`^2 times, and
    multiplies them by the weight as a matrix; its transpose takes these two steps in reverse.

    Args:
        weight: (out, in / groups, *kernel), float64.
        stride: Stride in each spatial dimension.
        dilation: Dilation in each spatial dimension.
        groups: Number of groups of channels; the norm is that of the group with the largest.
        tight: Whether singular values are used instead of Frobenius norms.
    """
    out, width, *kernel = weight.shape
    norm = spectral_norm if tight else frobenius_norm
    largest = 0.0
    for of_group in weight.reshape(groups, out // groups, width, -1):
        bound = norm(of_group.reshape(out // groups, -1)) * overlap(kernel, stride, dilation)
        if tight:
            # or multiply each entry by the matrices of all taps first, and then add the shifted
            # results: a sum of so many vectors is at most sqrt(taps) times as long as all of them
            taps = math.sqrt(math.prod(kernel))
            bound = min(bound, norm(of_group.transpose(0, 1).reshape(width, -1)) * taps)
        largest = max(largest, bound)
    return largest * _ROUNDING
