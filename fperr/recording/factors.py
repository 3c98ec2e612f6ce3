"""The factor by which an attack's dL/dz is that of a loss: of all rows, or of each of them."""

import math

import torch
from torch import Tensor

_LEAST_NUMBERS = 3  # that a fitted factor must explain: two classes and one row have but one
# entries of a row with a factor of its own that stand out of the rounding: they sum to zero, so
# that two of them show the factor alone; C&W has no more, and its zeros are all that shows it
LEAST_SEEN, LEAST_SEEN_OF_CW = 3, 2
_LEAST_CLASSES = 3
_MOST_OFF = 0.25  # relative: a factor of a row that is known less well is none


def matched(
    v: Tensor,
    rows: Tensor,
    batch: int,
    exact: Tensor,
    tolerance: Tensor,
    reduction: str,
    sign: int,
    least: int,
) -> tuple[Tensor, Tensor] | None:
    """The factors (batch,) by which v is `exact`, within `tolerance`, and the rows where it is.

    None where a row that must be explained is not; with a factor for each row, rows that are
    neither explained nor refuted may remain, but not all of them.

    Args:
        v: (rows, K), dL/dz.
        rows: (rows,), those that must be explained.
        batch: how many rows a mean is over.
        exact: (batch, K), the loss's own gradient.
        tolerance: (batch, K), how far v may be off.
        reduction: which factors to try.
        sign: of the factors.
        least: how many entries of a row must stand out to tell its own factor.
    """
    v = v.to(torch.float64)
    factor = ones(v) * sign / (batch if reduction == "mean" else 1)
    if reduction == "by sample":
        if v.shape[1] < _LEAST_CLASSES:
            return None
        factor, is_resolved, tolerance = _row_factors(v, exact, tolerance, least)
        explained = is_resolved & rows & (factor * sign > 0)
        factor = torch.where(explained, factor, float(sign))
        explained &= ((v / factor[:, None] - exact).abs() <= tolerance).all(1)
        is_match = bool(explained.any()) and bool(explained[is_resolved & rows].all())
        factor = torch.where(explained, factor, math.nan)
        return (factor, explained) if is_match else None
    if reduction == "scaled":
        if int(rows.sum()) * (v.shape[1] - 1) < _LEAST_NUMBERS:
            return None
        every = (part[rows].reshape(1, -1) for part in (v, exact, tolerance))
        fitted, off = _factors(*every)
        common = float(fitted)
        if not (common * sign > 0 and math.isfinite(common) and float(off) <= _MOST_OFF):
            return None
        tolerance = tolerance + off * (exact.abs() + tolerance)
        factor = ones(v) * common
    explained = ((v / factor[:, None] - exact).abs() <= tolerance).all(1)
    return (factor, explained) if bool(explained[rows].all()) else None


def _row_factors(
    v: Tensor, exact: Tensor, tolerance: Tensor, least: int
) -> tuple[Tensor, Tensor, Tensor]:
    """For each row the factor of v on `exact`, whether it tells one, and the tolerance with it."""
    factor, off = _factors(v, exact, tolerance)
    seen = (exact.abs() > tolerance / _MOST_OFF).sum(1)
    is_resolved = (off <= _MOST_OFF) & (seen >= least) & factor.isfinite()
    return factor, is_resolved, tolerance + off[:, None] * (exact.abs() + tolerance)


def _factors(v: Tensor, exact: Tensor, tolerance: Tensor) -> tuple[Tensor, Tensor]:
    """For each row (rows, m) the factor of v on `exact`, and a bound on its relative error.

    Entries count by what their rounding leaves of them: the small ones of cross-entropy are
    accurate where the label's cancels.
    """
    is_rounded = tolerance > 0
    relative = torch.where(is_rounded, exact / tolerance, 0.0)
    squares = relative.square().sum(1)
    factor = (relative * torch.where(is_rounded, v / tolerance, 0.0)).sum(1) / squares
    # with r = exact/tolerance and |d| <= tolerance: |sum of r d/tolerance| <= sqrt(m) |r|
    return factor, math.sqrt(v.shape[1]) / squares.sqrt()


def ones(v: Tensor) -> Tensor:
    """A factor of 1 for each row of v."""
    return torch.ones(len(v), dtype=torch.float64, device=v.device)
