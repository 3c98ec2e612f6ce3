"""Accurate cross-entropy: its bounds hold, are not far off, and could be refuted."""

import dataclasses
import math

import mpmath
import pytest
import torch

from fperr import bounds, losses
from fperr.bounds import accurate
from fperr.formats import format_named
from fperr.validation.accurate import computed_gradient, errors_and_bounds, falsify_accurate
from tests.conftest import normal, slow_except

CASES = 1500  # for each format
RATIOS = ["direction_ratio", "length_ratio"]


@pytest.fixture(scope="module")
def trials():
    return falsify_accurate(cases=CASES)


def test_no_case_refutes_the_bounds(trials):
    assert set(trials["format"]) == {"float16", "bfloat16", "float32", "float64"}
    assert trials["is_searched"].any()
    assert (trials[RATIOS] <= 1).all(axis=None), trials.loc[trials[RATIOS].idxmax().tolist()]


def test_the_bounds_are_not_far_off(trials):
    """Half of all errors are within a twentieth of their bound, for few classes."""
    few = trials[trials["K"].isin([2, 3, 10]) & ~trials["is_searched"]]
    band = few["margin"].gt(5).astype(int) + few["margin"].gt(20).astype(int)
    for name in ("direction", "length"):
        errors, limits = few[f"{name}_error"], few[f"{name}_bound"]
        slack = (limits / errors)[errors > 0]
        medians = slack.groupby([few["format"], few["K"], band]).agg(["median", "size"])
        medians = medians[medians["size"] >= 100]["median"]
        assert (medians <= 20).all(), medians


def planted(z, label):
    """One number of each gradient moved just beyond the bound on the direction."""
    gradient = computed_gradient(z, label)
    limit = bounds.accurate_cross_entropy(z, label).direction
    size = gradient.double().norm(dim=1)
    moved = gradient.double()
    # across v: the first other class up, the label as it is
    first = (label == 0).long()
    off = (4 * limit * size).nan_to_num(0.0, 0.0, 0.0)
    return moved.scatter_add(1, first[:, None], off[:, None])


def test_a_planted_error_just_above_the_bound_is_found():
    frame = falsify_accurate(["float32"], 2000, computed=planted)
    few = frame[(frame["K"] > 2) & (frame["margin"] < 5)]
    assert (few["direction_ratio"] > 1).mean() > 0.9


def without(term):
    """The bound with one of its terms left out."""
    name, position = TERMS[term]

    def bound(z, label):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(accurate, name, lambda *arguments: 0 * arguments[position])
            return bounds.accurate_cross_entropy(z, label)

    return bound


TERMS = {  # the name of a function, and the position of an argument of the shape of its result
    "difference": ("half_ulp", 0),
    "distance": ("known_rounding", 1),
    "products": ("rounding_near", 0),
    "sigmoid": ("_sigmoid_error", 1),
}


@pytest.mark.parametrize("term", slow_except(TERMS, ("difference", "sigmoid")))
def test_a_bound_without_one_of_its_terms_is_refuted(term):
    frame = falsify_accurate(["float32"], 4000, bound=without(term))
    assert (frame[RATIOS] > 1).any(axis=None)


def test_pytorch_s_own_gradient_is_beyond_the_bound():
    """Negative control: the kernel that subtracts from 1."""

    def of_pytorch(z, label):
        leaf = z.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(leaf, label, reduction="sum")
        return torch.autograd.grad(loss, leaf)[0]

    z = normal(200, 10)
    z[:, 3] += 20
    frame = errors_and_bounds(z, torch.full((200,), 3), of_pytorch)
    assert (frame["direction_ratio"] > 100).all()


def test_the_closed_form_is_above_the_bound_of_each_case():
    for name in ("float16", "bfloat16", "float32", "float64"):
        dtype = format_named(name).dtype
        for K in (2, 3, 10, 100):
            z = (5 * normal(300, K, seed=K)).to(dtype)
            label = torch.arange(300) % K
            single = bounds.accurate_cross_entropy(z, label)
            others = z.double().scatter(1, label[:, None], -math.inf).amax(1)
            distance = (z.double().gather(1, label[:, None])[:, 0] - others).abs()
            far = float(distance.max())
            direction, length = bounds.accurate_cross_entropy_errors(K, far, name)
            in_range = single.is_in_range
            assert (single.direction[in_range] <= direction).all()
            assert (single.length[in_range] <= length).all()


def test_the_closed_form_counts_subnormal_numbers():
    """Float16 with P just above 2^-14: the other numbers of v are a few subnormal steps."""
    z = torch.full((1, 300), -5.0).half()
    z[0, 0], z[0, 1] = 9.5, 0.0
    label = torch.tensor([0])
    single = bounds.accurate_cross_entropy(z, label)
    assert single.is_in_range.all()
    frame = errors_and_bounds(z, label)
    direction, length = bounds.accurate_cross_entropy_errors(300, 9.5, "float16")
    assert float(frame["direction_error"].iloc[0]) <= direction
    assert float(frame["length_error"].iloc[0]) <= length
    # without the subnormal numbers, the closed form would not have held
    assert float(frame["direction_error"].iloc[0]) > 4 * format_named("float16").unit_roundoff


def test_what_leaves_the_range_of_the_format_is_said():
    z = torch.tensor([[200.0, 0.0, 0.0], [50.0, 0.0, 0.0]])
    bound = bounds.accurate_cross_entropy(z, torch.tensor([0, 0]))
    assert bound.is_in_range.tolist() == [False, True]
    assert bound.direction.isinf().tolist() == [True, False]
    assert bounds.accurate_cross_entropy(z.double(), torch.tensor([0, 0])).is_in_range.all()
    assert computed_gradient(z, torch.tensor([0, 0]))[0].abs().max() == 0


def test_masked_classes_have_no_error():
    z = normal(50, 5)
    z[:, 4] = -math.inf
    label = torch.arange(50) % 4
    masked = bounds.accurate_cross_entropy(z, label)
    plain = bounds.accurate_cross_entropy(z[:, :4], label)
    for field in dataclasses.fields(masked):
        assert torch.equal(getattr(masked, field.name), getattr(plain, field.name))


def test_the_numbers_that_an_issue_of_pytorch_expects():
    """pytorch/pytorch#195678: PyTorch gives 0 for the first."""
    z = torch.tensor([[37.42994775023705, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = losses.cross_entropy(z, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, z)
    P = 1 / (1 + mpmath.mp.exp(mpmath.mpf(37.42994775023705)))
    limit = bounds.accurate_cross_entropy(z, torch.tensor([0])).length
    assert abs(float(gradient[0, 1]) / P - 1) <= float(limit)
    assert gradient[0].tolist() == pytest.approx([-5.551115123125776e-17, 5.551115123125776e-17])
    assert gradient.sum() == 0
