"""Bounds on norms of matrices, against singular values at 300 bits."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mpmath import MPContext

from fperr.exact.double_word import operator_norms
from fperr.exact.double_word.operator_norms import frobenius_norm, spectral_norm

BITS = 300
# how matrices of any side are bounded: by four squarings, by one, by none
SQUARINGS = (((512, 4),), ((512, 1),), ())
ROUNDED_UP = 2.0**-15  # of a bound, at most: see `_ROUNDING`


def true_norms(matrix):
    """The largest singular value, and the Frobenius norm."""
    mp = MPContext()
    mp.prec = BITS
    numbers = mp.matrix(matrix.tolist())
    frobenius = mp.sqrt(mp.fsum(number * number for number in numbers))
    # scaled: the iteration of `svd_r` compares with its precision
    scaled = numbers / frobenius if frobenius else numbers
    return max(mp.svd_r(scaled, compute_uv=False)) * frobenius, frobenius


@st.composite
def matrices(draw):
    """Random or of low rank, with rows of like or of graded size, huge, plain or tiny."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    rank = draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    left, right = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((rows, rank), (rank, columns))
    )
    grade = draw(st.sampled_from([0, 3, 40, 300]))
    exponents = (
        draw(st.sampled_from([0, -1073, -1040, -600, 500])) - grade * torch.arange(rows)[:, None]
    )
    # in two steps: a power of two alone may be too small for a float64 number
    return torch.ldexp(torch.ldexp(left @ right, exponents // 2), exponents - exponents // 2)


@settings(deadline=None, max_examples=60)
@given(matrix=matrices(), squarings=st.sampled_from(SQUARINGS))
@example(matrix=torch.zeros(2, 3, dtype=torch.float64), squarings=SQUARINGS[0])
@example(matrix=torch.full((2, 2), 2.0**-600, dtype=torch.float64), squarings=SQUARINGS[2])
@example(matrix=torch.full((1, 2), 2.0**-1074, dtype=torch.float64), squarings=SQUARINGS[0])
def test_norms_are_upper_bounds(matrix, squarings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operator_norms, "_SQUARINGS", squarings)
        bound = spectral_norm(matrix)
    spectral, frobenius = true_norms(matrix)
    assert spectral <= bound
    assert frobenius <= frobenius_norm(matrix) <= frobenius * (1 + ROUNDED_UP) + 2.0**-1021
    # |G^k|_F^(1/2k) is at most the fourth root of the rank times the norm, for k = 1
    assert bound <= frobenius * (1 + ROUNDED_UP) + 2.0**-1021


@pytest.mark.parametrize("squarings", SQUARINGS)
@pytest.mark.parametrize("exponent", [-600, 0, 500])
def test_a_bound_that_is_too_small_is_noticed(squarings, exponent, monkeypatch):
    """Of a matrix of equal entries all bounds are the norm, but for their rounding."""
    monkeypatch.setattr(operator_norms, "_SQUARINGS", squarings)
    matrix = torch.full((3, 5), 0.1 * 2.0**exponent, dtype=torch.float64)
    spectral, frobenius = true_norms(matrix)
    assert spectral <= spectral_norm(matrix) <= spectral * (1 + ROUNDED_UP)
    monkeypatch.setattr(operator_norms, "_ROUNDING", 1 - ROUNDED_UP)
    assert spectral_norm(matrix) < spectral
    assert frobenius_norm(matrix) < frobenius


def test_large_matrices_cost_no_squaring(monkeypatch):
    """Beyond the largest side the bound is one of n^2 operations."""
    monkeypatch.setattr(operator_norms, "_norm_by_powers", None)
    with pytest.raises(TypeError):
        spectral_norm(torch.ones(1024, 1024, dtype=torch.float64))
    assert spectral_norm(torch.ones(1025, 1025, dtype=torch.float64)) >= 1025
