"""Where attacks may go: the ball and the box, exactly, in every format."""

import math
from fractions import Fraction

import pytest
import torch

from fperr.attacks.region import Region, where_by_sample
from tests.attacks.test_attacks import DTYPES, uniform
from tests.conftest import normal


def outside(x, centre, radius):
    """Whether |x - centre| > radius in exact arithmetic, for each component."""
    pairs = zip(x.double().ravel().tolist(), centre.double().ravel().tolist(), strict=True)
    return [abs(Fraction(a) - Fraction(b)) > Fraction(radius) for a, b in pairs]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("radius", [0.3, 8 / 255, 0.1, 1e-3])
def test_no_point_leaves_ball_or_box(dtype, radius):
    centre = uniform(4, 600, dtype=dtype)
    region = Region.around(centre, "linf", radius, (0.0, 1.0), is_exact=True)
    far = (centre.double() + 3 * radius * normal(4, 600).double()).to(dtype)
    for x in (
        region.project_(far),
        region.random_start(0, 0),
        region.after_step(centre, normal(4, 600), torch.full((4,), 9.0)),
    ):
        assert x.dtype == dtype
        assert not any(outside(x, centre, radius))
        assert bool(((x >= 0) & (x <= 1)).all())
        assert (region.excess_ulps(x) <= 0).all()
    # and no smaller than it has to be: the next number is outside, or the box ends there
    beyond = torch.nextafter(region.upper, torch.full_like(region.upper, 2.0))
    at_box = region.upper == torch.tensor(1.0, dtype=dtype)
    found = torch.tensor(outside(beyond, centre, radius)).reshape(centre.shape)
    assert bool((found | at_box).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_point_leaves_a_box_whose_ends_are_no_numbers_of_the_format(dtype, norm):
    for low, high in ((0.1, 0.7), (-0.7, -0.1), (-0.3, 0.3)):
        ends = torch.tensor([low, high], dtype=torch.float64)
        centre = (low + (high - low) * uniform(3, 200).double()).clamp(low, high).to(dtype)
        inside = (centre.double() >= low) & (centre.double() <= high)
        centre = torch.where(inside, centre, torch.tensor((low + high) / 2, dtype=dtype))
        region = Region.around(centre, norm, 9.0, (low, high), is_exact=True)
        for end, sign in ((low, -1.0), (high, 1.0)):
            x = region.project_(torch.full_like(centre, sign * 8.0)).double()
            assert bool(((x >= ends[0]) & (x <= ends[1])).all())
            if norm == "linf":  # the ball is larger than the box: its corner is reached
                assert bool(((x - end).abs() <= torch.finfo(dtype).eps).all())


def test_libraries_leave_the_ball():
    centre = uniform(4, 5000)
    region = Region.around(centre, "linf", 0.3, (0.0, 1.0), is_exact=False)
    x = region.project_(centre + 1)
    assert any(outside(x, centre, 0.3))
    assert region.excess_ulps(x).max() > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_euclidean_ball_is_not_left(dtype):
    centre = uniform(8, 300, dtype=dtype)
    region = Region.around(centre, "l2", 0.7, (0.0, 1.0), is_exact=True)
    far = (centre.double() + normal(8, 300).double()).to(dtype)
    for x in (
        region.project_(far),
        region.random_start(1, 0),
        region.after_step(centre, normal(8, 300), torch.full((8,), 3.0)),
    ):
        for mine, own in zip(x, centre, strict=True):
            pairs = zip(mine.double().tolist(), own.double().tolist(), strict=True)
            squares = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in pairs)
            assert squares <= Fraction(0.7) ** 2
            assert squares >= Fraction(0.1) ** 2
    still = region.after_step(centre, torch.zeros(8, 300), torch.ones(8))
    assert torch.equal(still, centre)  # no direction: no NaN


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_choosing_samples_changes_no_number(dtype):
    x, other = uniform(6, 500, dtype=dtype), uniform(6, 500, dtype=dtype, seed=1)
    other[:, :2] = torch.tensor([0.0, 1.0], dtype=dtype)
    first = torch.tensor([True, False, True, True, False, False])
    assert torch.equal(where_by_sample(first, x, other), torch.where(first[:, None], x, other))
    if dtype in (torch.float32, torch.float64):  # no half format: there it is formed in float32
        far = torch.full_like(x, torch.finfo(dtype).max)  # their difference overflows
        assert not torch.equal(
            where_by_sample(first, -far, far), torch.where(first[:, None], -far, far)
        )
    with pytest.raises(ValueError, match="smaller radius or box"):  # which is therefore refused
        Region.around(x, "linf", 1.5e308, (-math.inf, math.inf), is_exact=True)


def test_starts_belong_to_samples():
    centre = uniform(6, 3, 4)
    whole = Region.around(centre, "linf", 0.1, (0.0, 1.0), is_exact=True).random_start(3, 1)
    order = torch.tensor([4, 0, 2])
    part = Region.around(centre[order], "linf", 0.1, (0.0, 1.0), is_exact=True)
    assert torch.equal(part.random_start(3, 1), whole[order])
    assert not torch.equal(part.random_start(4, 1), whole[order])
    assert not torch.equal(part.random_start(3, 0), whole[order])
