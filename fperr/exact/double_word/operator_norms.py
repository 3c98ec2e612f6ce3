"""Upper bounds on the operator norms of matrices and convolutions, for Euclidean norms."""

import math

import torch
from torch import Tensor

# Squarings of a Gram matrix cost n^3 each and tighten a bound of n^2: four for matrices up to 512 a
# side, one up to 1,024. Beyond, the bound of n^2 is as much as a first gradient is worth: on a
# random matrix of 2,048 it is 18 times too large, which costs 4 of 106 bits for a layer.
_SQUARINGS = ((512, 4), (1024, 1))
# Covers rounding. Let a matrix have m n entries up to 1, m <= n, and norm s; u = 2^-53. An entry of
# its Gram matrix is off by (n + 1) u times the norms of two rows, so the Gram matrix is off by
# (n + 1) u m s^2 in the Frobenius norm. Squaring a matrix of norm p that is off by e p doubles e,
# and adds e^2 and the rounding of sums of m terms, (m + 1) u m p^2. The root that is taken in the
# end divides e by as many twos, so that it is below 2 m n u, with 2^-48 for logarithms; sums of
# magnitudes and of squares are off by less. That stays below 2^-16 up to 2^35 entries, 2^38 bytes.
_ROUNDING = 1 + 2.0**-16
# Bounds among subnormal numbers are off by a few times 2^-1074, however small they are.
_UNDERFLOW = 2.0**-1022


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
    return bound * scale * _ROUNDING + _UNDERFLOW


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
    # scaled, because squares of small numbers vanish
    scale = float(matrix.abs().max()) if matrix.numel() else 0.0
    if scale == 0:
        return 0.0
    return float(torch.linalg.vector_norm(matrix / scale)) * scale * _ROUNDING + _UNDERFLOW


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
