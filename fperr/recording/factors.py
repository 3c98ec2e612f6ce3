"""The factor by which an attack's dL/dz is a loss's own: a common one, or one for each row."""

import math

import torch
from torch import Tensor

_FEWEST_ENTRIES = 3  # that a fitted factor must explain: two classes and one row have but one
# the number of entries of a row with a factor of its own that stand out of the rounding: they sum
# to zero, so that two of them show the factor alone; C&W has no more, and its zeros are all that
# shows it
FEWEST_CLEAR, FEWEST_CLEAR_OF_CW = 3, 2
_FEWEST_CLASSES = 3
_LARGEST_ERROR = 0.25  # relative: a row's factor that is less accurate does not count


def fitted_factors(
    v: Tensor,
    is_required: Tensor,
    batch: int,
    exact: Tensor,
    tolerance: Tensor,
    reduction: str,
    sign: int,
    fewest_clear: int,
) -> tuple[Tensor, Tensor] | None:
    """Fit the factors by which v is `exact`, within `tolerance`.

    Args:
        v: (rows, K), dL/dz.
        is_required: (rows,) bool, the rows that must be explained.
        batch: Number of rows that a mean is over.
        exact: (rows, K) float64, the loss's own gradient.
        tolerance: (rows, K) float64, an upper bound on the error of v, with factor 1.
        reduction: Kind of factor to try: `"sum"`, `"mean"`, `"scaled"` (a common factor, fitted) or
            `"by sample"` (one for each row, fitted).
        sign: Sign of the factors, 1 or -1.
        fewest_clear: Number of entries of a row that must stand out of the rounding to show its own
            factor.

    Returns:
        The factors (rows,) float64, and the rows that they explain, (rows,) bool; None where a row
        that must be explained is not. With a factor for each row, rows that are neither explained
        nor refuted may remain, but not all of them; their factor is NaN.
    """
    v = v.to(torch.float64)
    factor = ones(v) * sign / (batch if reduction == "mean" else 1)
    if reduction == "by sample":
        if v.shape[1] < _FEWEST_CLASSES:
            return None
        factor, is_resolved, tolerance = _row_factors(v, exact, tolerance, fewest_clear)
        explained = is_resolved & is_required & (factor * sign > 0)
        factor = torch.where(explained, factor, float(sign))
        explained &= ((v / factor[:, None] - exact).abs() <= tolerance).all(1)
        is_match = bool(explained.any()) and bool(explained[is_resolved & is_required].all())
        factor = torch.where(explained, factor, math.nan)
        return (factor, explained) if is_match else None
    if reduction == "scaled":
        # the K entries of a row sum to zero, so that it shows K - 1 numbers
        if int(is_required.sum()) * (v.shape[1] - 1) < _FEWEST_ENTRIES:
            return None
        # all required rows as one long row, which has one factor
        long_rows = (t[is_required].reshape(1, -1) for t in (v, exact, tolerance))
        fitted, relative_error = _factors(*long_rows)
        common = float(fitted)
        is_accurate = float(relative_error) <= _LARGEST_ERROR
        if not (common * sign > 0 and math.isfinite(common) and is_accurate):
            return None
        tolerance = tolerance + relative_error * (exact.abs() + tolerance)
        factor = ones(v) * common
    explained = ((v / factor[:, None] - exact).abs() <= tolerance).all(1)
    return (factor, explained) if bool(explained[is_required].all()) else None


def _row_factors(
    v: Tensor, exact: Tensor, tolerance: Tensor, fewest_clear: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit the factor of each row.

    Returns:
        The factors (rows,); whether a row shows its own, (rows,) bool; and the tolerance (rows, K),
        which the error of the factor has widened.
    """
    factor, relative_error = _factors(v, exact, tolerance)
    clear_entries = (exact.abs() > tolerance / _LARGEST_ERROR).sum(1)
    is_resolved = (
        (relative_error <= _LARGEST_ERROR) & (clear_entries >= fewest_clear) & factor.isfinite()
    )
    return factor, is_resolved, tolerance + relative_error[:, None] * (exact.abs() + tolerance)


def _factors(v: Tensor, exact: Tensor, tolerance: Tensor) -> tuple[Tensor, Tensor]:
    """The least-squares factor of v on `exact` for each row (rows, m), and its relative error.

    Entries are weighted by 1/tolerance: the small ones of cross-entropy are accurate where the
    label's cancels. The second result is an upper bound on the relative error.
    """
    is_rounded = tolerance > 0
    relative = torch.where(is_rounded, exact / tolerance, 0.0)
    squares = relative.square().sum(1)
    factor = (relative * torch.where(is_rounded, v / tolerance, 0.0)).sum(1) / squares
    # with r = exact/tolerance and |d| <= tolerance: |sum of r d/tolerance| <= sqrt(m) |r|
    return factor, math.sqrt(v.shape[1]) / squares.sqrt()


def ones(v: Tensor) -> Tensor:
    """A factor of 1 for each row of v, float64."""
    return torch.ones(len(v), dtype=torch.float64, device=v.device)
